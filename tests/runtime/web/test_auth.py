"""Who may read and write: host names, tokens, sessions, CSRF."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nnet_edge.errors import ConfigError
from nnet_edge.runtime.web.auth import FAILURES, SESSION_S, Auth, Caller, Refusal, host_name
from nnet_edge.settings.web import WebSettings

TOKEN = "a-token-of-some-length"
OPEN = WebSettings(names=("line-7.local",))
CLOSED = WebSettings(host="0.0.0.0", token_from="env:TOKEN", names=("line-7",))


class Clock:
    """A clock that a test turns."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:80", "LOCALHOST", "line-7.local:9"])
def test_names_of_the_page_are_answered(host: str) -> None:
    assert Auth(OPEN, None).host_refused({"host": host}) is None


@pytest.mark.parametrize(
    "host", ["", "evil.example", "localhost.evil.example", "a@localhost", "localhost/x", "localhost:x", "[::1"]
)
def test_other_names_are_refused(host: str) -> None:
    refusal = Auth(OPEN, None).host_refused({"host": host})
    assert refusal is not None
    assert refusal.status == 421


def test_a_page_that_others_reach_does_not_answer_to_localhost() -> None:
    assert Auth(CLOSED, TOKEN).host_refused({"host": "localhost"}) is not None
    assert Auth(CLOSED, TOKEN).host_refused({"host": "line-7:8080"}) is None


def test_a_token_opens_and_a_wrong_one_does_not() -> None:
    auth = Auth(CLOSED, TOKEN)
    assert auth.caller({"authorization": f"Bearer {TOKEN}"}, None) == Caller(None)
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer"},
    ):
        found = auth.caller(headers, None)
        assert isinstance(found, Refusal)
        assert found.status == 401
        assert TOKEN not in found.reason


def test_sessions_end_after_a_while_and_when_logged_out() -> None:
    clock = Clock()
    auth = Auth(CLOSED, TOKEN, clock)
    session = auth.log_in(TOKEN)
    assert isinstance(session, str)
    assert auth.caller({}, session) == Caller(session)
    clock.now_s += SESSION_S + 1
    assert isinstance(auth.caller({}, session), Refusal)
    other = auth.log_in(TOKEN)
    assert isinstance(other, str)
    auth.log_out(other)
    assert isinstance(auth.caller({}, other), Refusal)


def test_after_many_wrong_tokens_an_address_is_not_compared_and_others_are() -> None:
    clock = Clock()
    auth = Auth(CLOSED, TOKEN, clock)
    for _ in range(FAILURES):
        assert auth.log_in("wrong", peer="192.0.2.1") == Refusal(401, "the token is wrong")
    for token in ("wrong", TOKEN):  # else tokens could be tried without end
        refusal = auth.log_in(token, peer="192.0.2.1")
        assert isinstance(refusal, Refusal)
        assert refusal.status == 429
    assert isinstance(auth.log_in(TOKEN, peer="192.0.2.2"), str)
    assert auth.caller({"authorization": f"Bearer {TOKEN}"}, None, "192.0.2.2") == Caller(None)
    clock.now_s += 61
    assert isinstance(auth.log_in(TOKEN, peer="192.0.2.1"), str)


def test_an_open_session_outlasts_wrong_tokens_and_visits_of_others() -> None:
    auth = Auth(CLOSED, TOKEN)
    session = auth.log_in(TOKEN, peer="192.0.2.1")
    assert isinstance(session, str)
    for _ in range(FAILURES + 1):
        auth.log_in("wrong", peer="192.0.2.1")
    assert auth.caller({}, session, "192.0.2.1") == Caller(session)
    visited = Auth(OPEN, None)
    mine = visited.log_in(None)
    assert isinstance(mine, str)
    for _ in range(5000):  # programs without cookies
        visited.log_in(None)
    assert visited.caller({}, mine) == Caller(mine)


def test_a_session_cannot_be_made_up_or_prolonged() -> None:
    auth = Auth(CLOSED, TOKEN)
    session = auth.log_in(TOKEN)
    assert isinstance(session, str)
    role, name, until, signature = session.split(".")
    for forged in (
        f"{role}.{name}.{int(until) + 1}.{signature}",
        f"operator.{name}.{until}.{signature}",
        f"{role}.{name}.{until}.",
        f"{role}.{name}.{until}",
        "",
        "..",
        "\ud800.9.x",
    ):
        assert isinstance(auth.caller({}, forged), Refusal)
    assert isinstance(Auth(CLOSED, TOKEN).caller({}, session), Refusal)  # of another start


def test_wrong_tokens_through_a_proxy_count_for_those_who_send_them() -> None:
    behind = replace(CLOSED, host="127.0.0.1", public_url="https://line.example/")
    auth = Auth(behind, TOKEN)
    for _ in range(FAILURES):
        auth.log_in("wrong", {"x-forwarded-for": "198.51.100.1, 192.0.2.1"}, "127.0.0.1")
    refusal = auth.log_in(TOKEN, {"x-forwarded-for": "192.0.2.1"}, "127.0.0.1")
    assert isinstance(refusal, Refusal)
    assert isinstance(auth.log_in(TOKEN, {"x-forwarded-for": "192.0.2.2"}, "127.0.0.1"), str)
    direct = Auth(CLOSED, TOKEN)  # nobody before it: the header is anybody's word
    for number in range(FAILURES):
        direct.log_in("wrong", {"x-forwarded-for": f"192.0.2.{number}"}, "203.0.113.1")
    assert isinstance(direct.log_in(TOKEN, {"x-forwarded-for": "192.0.2.99"}, "203.0.113.1"), Refusal)


def test_the_wrong_tokens_of_one_ipv6_network_count_together() -> None:
    auth = Auth(CLOSED, TOKEN)
    for number in range(FAILURES):
        auth.log_in("wrong", peer=f"2001:db8::{number:x}")
    assert isinstance(auth.log_in(TOKEN, peer="2001:db8::ffff"), Refusal)
    assert isinstance(auth.log_in(TOKEN, peer="2001:db8:0:1::1"), str)


@pytest.mark.parametrize("host", ["127.0.0.1:8491", "line.example", "line.example:8443"])
@pytest.mark.parametrize(
    "url", ["https://line.example:8443/", "https://line.example:8443/hall-2/", "HTTPS://Line.Example:8443"]
)
def test_a_proxy_may_hand_on_any_host_of_the_public_address(host: str, url: str) -> None:
    auth = Auth(replace(OPEN, public_url=url), None)
    headers = {"host": host, "origin": "https://line.example:8443"}
    assert auth.host_refused(headers) is None
    assert auth.origin_refused(headers) is None
    assert auth.origin_refused(headers | {"origin": "https://line.example:8444"}) is not None
    assert auth.origin_refused(headers | {"origin": "https://evil.example:8443"}) is not None


@pytest.mark.parametrize(
    "url", ["line.example", "ftp://line.example/", "https://", "https://a:b@line/", "https://x:y/"]
)
def test_an_invalid_public_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="public_url"):
        replace(OPEN, public_url=url)


def test_https_to_the_proxy_makes_cookies_secure() -> None:
    assert replace(OPEN, public_url="https://line.example/").has_secure_cookies
    assert not replace(OPEN, public_url="http://line.example/").has_secure_cookies


def test_a_write_needs_the_token_of_its_own_session() -> None:
    auth = Auth(OPEN, None)
    first, second = auth.log_in(None), auth.log_in(None)
    assert isinstance(first, str)
    assert isinstance(second, str)
    good = {"host": "localhost:1", "x-csrf-token": auth.csrf_token(first)}
    assert auth.write_refused(Caller(first), good) is None
    assert auth.write_refused(Caller(first), good | {"origin": "http://localhost:1"}) is None
    for caller, headers in (
        (Caller(second), good),
        (Caller(first), {"host": "localhost:1"}),
        (Caller(None), good),
        (Caller(first), good | {"origin": "http://localhost:2"}),
        (Caller(first), good | {"origin": "null"}),
        (Caller(first), good | {"origin": "http://[evil"}),
    ):
        refusal = auth.write_refused(caller, headers)
        assert refusal is not None
        assert refusal.status == 403


def test_an_address_that_others_reach_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="without a token"):
        WebSettings(host="0.0.0.0")
    with pytest.raises(ConfigError, match="never the secret itself") as caught:
        WebSettings(token_from=TOKEN)
    assert TOKEN not in str(caught.value)
    settings = WebSettings(host="::", token_from="env:PAGE_TOKEN")
    with pytest.raises(ConfigError, match="PAGE_TOKEN"):
        settings.token()
    monkeypatch.setenv("PAGE_TOKEN", "short")
    with pytest.raises(ConfigError, match="needs 16 letters"):
        settings.token()
    monkeypatch.setenv("PAGE_TOKEN", TOKEN)
    assert settings.token() == TOKEN
    assert TOKEN not in repr(settings)


def test_host_names_are_read_as_browsers_write_them() -> None:
    assert host_name("[::1]:8080") == "::1"
    assert host_name("Line:8080") == "line"
    assert host_name("") is None
