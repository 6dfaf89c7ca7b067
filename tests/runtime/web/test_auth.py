"""Who may read and write: host names, tokens, sessions, CSRF."""

from __future__ import annotations

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


def test_many_wrong_tokens_are_told_to_wait_and_the_right_one_is_not() -> None:
    clock = Clock()
    auth = Auth(CLOSED, TOKEN, clock)
    for _ in range(FAILURES):
        assert auth.log_in("wrong") == Refusal(401, "the token is wrong")
    refusal = auth.log_in("wrong")
    assert isinstance(refusal, Refusal)
    assert refusal.status == 429
    assert isinstance(auth.log_in(TOKEN), str)
    assert auth.caller({"authorization": f"Bearer {TOKEN}"}, None) == Caller(None)
    clock.now_s += 61
    assert auth.log_in("wrong") == Refusal(401, "the token is wrong")


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
