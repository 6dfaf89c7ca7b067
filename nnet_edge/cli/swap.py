"""`nnet-edge swap`: tell a running line, through its page, to judge by another bundle."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from nnet_edge.cli.options import Command
from nnet_edge.cli.view import say
from nnet_edge.errors import ConfigError, StreamError
from nnet_edge.settings.secrets import read_secret

if TYPE_CHECKING:  # what talks to a page is imported when it does: `--help` starts without it
    from urllib.error import HTTPError
    from urllib.request import Request

ANSWER_LIMIT_S = 10.0  # of one answer, whole: a peer that gives a byte now and then is none
LARGEST_ANSWER = 1 << 26  # bytes
LOOK_S = 0.5


@click.command("swap", cls=Command, example="nnet-edge swap runs/next/bundle --url http://127.0.0.1:8080")
@click.argument("bundle", required=False)
@click.option(
    "--url", metavar="URL", default="http://127.0.0.1:8080", show_default=True, help="The page of the running line."
)
@click.option("--stream", "name", metavar="NAME", help="Only for this stream (default: for all).")
@click.option("--recipe", metavar="NAME", help="Instead of BUNDLE: judge by this recipe of the line's file.")
@click.option("--token-from", metavar="env:NAME|file:PATH", help="What holds the page's token, where it has one.")
def command(bundle: str | None, url: str, name: str | None, recipe: str | None, token_from: str | None) -> None:
    """Let a running line judge by BUNDLE, a folder below its bundle_folder, without losing a frame."""
    if (bundle is None) is (recipe is None) or (recipe is not None and name is not None):
        raise ConfigError("give a BUNDLE, with --stream where it is for one, or --recipe NAME")
    PageClient(url, None if token_from is None else read_secret("--token-from", token_from)).swap(bundle, name, recipe)
    say(f"the line at {url} judges by {bundle or f'the recipe {recipe}'}")


class PageClient:
    """Talks to the page of a line as a program: with a bearer token, or with a session where there is none.

    Every method raises StreamError for a line that does not answer or refuses.
    """

    def __init__(self, url: str, token: str | None = None, answer_limit_s: float = ANSWER_LIMIT_S) -> None:
        from http.cookiejar import CookieJar, DefaultCookiePolicy
        from urllib.request import HTTPCookieProcessor, HTTPRedirectHandler, ProxyHandler, build_opener

        class NoRedirect(HTTPRedirectHandler):
            """Follows no redirect: the token goes to the given address only."""

            def redirect_request(self, *arguments: Any) -> None:
                return None

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ConfigError("the page's address is invalid: give http://127.0.0.1:8080")
        self._url, self._token, self._csrf, self._limit_s = url.rstrip("/"), token, "", answer_limit_s
        cookies = HTTPCookieProcessor(CookieJar(DefaultCookiePolicy()))
        self._opener = build_opener(ProxyHandler({}), cookies, NoRedirect())

    def state(self) -> dict[str, Any]:
        """The line as the page sees it."""
        return self._ask("api/state?after=999999999")

    def swap(
        self, bundle: str | None, stream: str | None = None, recipe: str | None = None, limit_s: float = 600.0
    ) -> None:
        """Load the bundle, or the recipe's, beside the old one and judge by it; returns when it judges."""
        try:
            self._swap({"bundle": bundle, "stream": stream} if recipe is None else {"recipe": recipe}, limit_s)
        except (KeyError, TypeError) as error:
            raise StreamError(f"what answers at {self._url} is no page of nnet-edge: check --url") from error

    def _swap(self, asked: Mapping[str, Any], limit_s: float) -> None:
        what = f"bundle {asked['bundle']}" if asked.get("bundle") else f"recipe {asked.get('recipe')}"
        if self._token is None:
            self._ask("", is_json=False)  # a session begins
            self._csrf = self._ask("api/session")["csrf"] or ""
        found = self._ask("api/swap", asked)["swap"]
        end_s = time.monotonic() + limit_s
        while found["state"] == "loading":
            if time.monotonic() > end_s:
                raise StreamError(f"the {what} is not loaded after {limit_s:g} s: look at the line's log")
            time.sleep(LOOK_S)
            found = self.state()["swap"]
        if found["state"] == "failed":
            raise StreamError(f"the {what} was not swapped in, the old one judges on: {found['reason']}")

    def _ask(self, path: str, fields: Mapping[str, Any] | None = None, is_json: bool = True) -> Any:
        from http.client import HTTPException
        from urllib.request import Request

        headers = {"content-type": "application/json", "x-csrf-token": self._csrf}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        body = None if fields is None else json.dumps(fields).encode()
        request = Request(f"{self._url}/{path}", body, headers)
        try:
            content = within(self._limit_s, lambda: self._fetch(request))
            return json.loads(content) if is_json else {}
        except (OSError, ValueError, RecursionError, HTTPException) as error:
            raise StreamError(f"the line at {self._url} does not answer ({error}): is its page on?") from error

    def _fetch(self, request: Request) -> bytes:
        """The body of the answer. Raises StreamError for a refusal."""
        from urllib.error import HTTPError

        try:
            with self._opener.open(request, timeout=self._limit_s) as answer:
                return bytes(answer.read(LARGEST_ANSWER))
        except HTTPError as error:
            raise StreamError(f"the line at {self._url} refuses ({error.code}): {reason_of(error)}") from error


def within(limit_s: float, work: Callable[[], bytes]) -> bytes:
    """What `work` gives, in a thread that is left behind when it takes longer. Raises what it raises, and TimeoutError."""
    found: list[bytes | Exception] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, name="answer of a page", daemon=True)
    thread.start()
    thread.join(limit_s)
    if not found:
        raise TimeoutError(f"not whole after {limit_s:g} s")
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def reason_of(error: HTTPError) -> str:
    """The sentence in the page's answer."""
    try:
        return str(json.loads(error.read(4096))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return error.reason or "no reason given"
