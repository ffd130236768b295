"""Where secrets are read, when tokens are renewed, and that no text shows them."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from heliograph.core.errors import ConfigError, UplinkError
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.uplink.http import Answer, Exchange, Http, NotSent, Unclear, fault
from heliograph.uplink.tokens import (
    SECRET_LIMIT,
    Authorized,
    Login,
    Secret,
    StaticToken,
    bearer,
    drec_login,
    expires,
    redex_login,
)
from tests.fakes import FakeClock

NOW = datetime(2026, 5, 2, tzinfo=UTC)
BASE = "https://platform.example"
HOUR = timedelta(hours=1)


def jwt(exp: object, **claims: Any) -> str:
    def part(data: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(data).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256'})}.{part({'exp': exp, **claims})}.c2ln"


def env(value: str) -> Secret:
    return Secret(env="X", environ={"X": value})


class Platform:
    """Answers logins from a script of (status, JSON), and keeps what it was asked."""

    def __init__(self, *answers: tuple[int, Any] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, Any]] = []
        self.http = Http(BASE, transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.url.path, json.loads(request.content)))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, body = answer
        return (
            httpx.Response(status, json=body) if not isinstance(body, bytes) else httpx.Response(status, content=body)
        )


def given(token: str, refresh: str | None = "r1", life: object = 3600) -> tuple[int, Any]:
    data = {"AccessToken": token, "RefreshToken": refresh, "ExpiresIn": life, "TokenType": "Bearer"}
    return 200, {"Data": data, "StatusCode": 200, "Errors": [], "Meta": None, "Message": "Success"}


def redex(platform: Platform) -> Login:
    return redex_login(platform.http, env("key"), env("id"), env("secret"))


def drec(platform: Platform) -> Login:
    return drec_login(platform.http, env("me@example.org"), env("pass1word"))


# Secrets


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    secret = Secret(file=file)
    file.write_text("one\n")
    assert secret.read() == "one"
    other = tmp_path / "new"
    other.write_text("two\n")
    other.replace(file)  # as a person or a tool would do it: another inode, the same length
    assert secret.read() == "two"
    file.write_text("three")
    assert secret.read() == "three"
    assert secret.known() == {"one", "two", "three"}  # an answer may still quote an earlier one


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one")
    mark = file.stat()
    secret = Secret(file=file)
    assert secret.read() == "one"
    with file.open("r+b") as handle:
        handle.write(b"two")
    os.utime(file, ns=(mark.st_atime_ns, mark.st_mtime_ns))
    assert secret.read() == "one"
    assert secret.read(fresh=True) == "two"


def test_a_credential_is_a_file_in_the_directory_systemd_names(tmp_path: Path) -> None:
    (tmp_path / "drec.token").write_text("abc\n")
    assert Secret(credential="drec.token", environ={"CREDENTIALS_DIRECTORY": str(tmp_path)}).read() == "abc"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: Secret(file=path / "none"), "none: no secret: No such file"),
        (lambda path: Secret(file=path), "no secret: Is a directory"),
        (lambda path: Secret(file=path / "empty"), "holds no secret"),
        (lambda path: Secret(file=path / "two"), "more than one line"),
        (lambda path: Secret(file=path / "long"), "too long"),
        (lambda _: Secret(env="NONE", environ={}), "environment variable NONE holds no secret"),
        (lambda _: Secret(credential="a", environ={}), "started without any"),
        (lambda path: Secret(credential="a", environ={"CREDENTIALS_DIRECTORY": str(path)}), "no secret: No such file"),
        (lambda path: Secret(credential="../a", environ={"CREDENTIALS_DIRECTORY": str(path)}), "not the name"),
    ],
)
def test_a_missing_secret_says_where_and_what_to_do(tmp_path: Path, make: Callable[[Path], Secret], told: str) -> None:
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "two").write_text("CANARY\nline")
    (tmp_path / "long").write_text("x" * (SECRET_LIMIT + 1))
    with pytest.raises(ConfigError, match=told) as error:
        make(tmp_path).read()
    assert error.value.hint
    assert "CANARY" not in str(error.value)


@pytest.mark.parametrize("places", [{}, {"env": "A", "credential": "b"}])
def test_a_secret_has_one_place(places: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        Secret(**places)  # type: ignore[arg-type]  # the names are those of the parameters


@pytest.mark.parametrize("text", ["", "two words", "new\nline", "schlüssel", "a\x7f"])
def test_what_does_not_fit_into_a_header_is_no_token(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        bearer(text, "place")
    assert not text or text not in str(error.value)


# Expiry


@pytest.mark.parametrize(
    ("token", "end"),
    [
        (jwt(1_777_680_000), datetime(2026, 5, 2, tzinfo=UTC)),
        (jwt(1_777_680_000.0, sub="ü?>"), datetime(2026, 5, 2, tzinfo=UTC)),
        (jwt("soon"), None),
        (jwt(None), None),
        (jwt(10**30), None),
        (jwt(-(10**30)), None),
        ("opaque", None),
        ("a.b.c", None),
        ("a.ÿÿ.c", None),
        (f"a.{base64.urlsafe_b64encode(b'[1]').decode()}.c", None),
    ],
)
def test_a_jwt_says_when_it_ends(token: str, end: datetime | None) -> None:
    assert expires(token) == end


def test_a_static_token_shows_its_end_and_is_renewed_by_whoever_writes_the_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    source = StaticToken(Secret(file=file))
    assert source.expiry() is None
    with pytest.raises(ConfigError):
        source.token(NOW)
    file.write_text(jwt(1_777_680_000))
    assert source.expiry() == NOW
    first = source.token(NOW)
    assert source.renew(NOW, first) is False
    file.write_text("another")
    assert source.renew(NOW, first) is True
    assert source.token(NOW) == "another"


# REDEX


def test_a_redex_token_is_kept_until_four_fifths_of_its_life() -> None:
    platform = Platform(given("a1"), given("a2", "r2"))
    login = redex(platform)
    assert [login.token(NOW + minutes * timedelta(minutes=1)) for minutes in (0, 1, 47)] == ["a1"] * 3
    assert login.expiry() == NOW + HOUR
    assert login.token(NOW + timedelta(minutes=48)) == "a2"
    assert platform.asked == [
        (
            "/public/v2/connect/token",
            {"ApiKey": "key", "GrantType": "api_key", "ClientId": "id", "ClientSecret": "secret"},
        ),
        (
            "/public/v2/connect/token/refresh",
            {"RefreshToken": "r1", "GrantType": "refresh_token", "ClientId": "id", "ClientSecret": "secret"},
        ),
    ]


@pytest.mark.parametrize(
    ("life", "seconds"), [(3600, 3600), ("3600", 3600), (60, 60), (None, 3600), ("soon", 3600), (0, 3600), (True, 3600)]
)
def test_expires_in_is_a_number_or_a_text(life: object, seconds: int) -> None:
    login = redex(Platform(given("a1", life=life)))
    login.token(NOW)
    assert login.expiry() == NOW + timedelta(seconds=seconds)


def test_the_newest_refresh_token_is_used() -> None:
    platform = Platform(given("a1", "r1"), given("a2", "r2"), given("a3", None), given("a4", "r4"))
    login = redex(platform)
    for hours in range(4):
        login.token(NOW + hours * HOUR)
    assert [body.get("RefreshToken") for _, body in platform.asked] == [None, "r1", "r2", "r2"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refused_refresh_falls_back_to_the_api_key(status: int) -> None:
    platform = Platform(given("a1"), (status, {"Data": None, "StatusCode": status}), given("a2", "r2"))
    login = redex(platform)
    login.token(NOW)
    assert login.token(NOW + HOUR) == "a2"
    assert [body["GrantType"] for _, body in platform.asked] == ["api_key", "refresh_token", "api_key"]


def test_a_token_that_cannot_be_renewed_early_is_used_to_its_end() -> None:
    platform = Platform(given("a1"), (503, {}), httpx.ConnectError("no"), httpx.ConnectError("no"))
    login = redex(platform)
    login.token(NOW)
    assert login.token(NOW + timedelta(minutes=48)) == "a1"
    assert login.token(NOW + timedelta(minutes=49)) == "a1"
    assert len(platform.asked) == 2  # not at every request
    assert login.token(NOW + timedelta(minutes=55)) == "a1"
    with pytest.raises(UplinkError):
        login.token(NOW + HOUR)


@pytest.mark.parametrize(
    ("answer", "wait"),
    [
        (httpx.ConnectError("refused"), timedelta(seconds=60)),
        (httpx.ReadTimeout("slow"), timedelta(seconds=60)),
        ((401, {"Message": "Unauthorized secret"}), timedelta(minutes=15)),
        ((422, {"Message": "ClientSecret: secret"}), timedelta(minutes=15)),
        ((429, b""), timedelta(seconds=60)),
        ((500, b"secret"), timedelta(seconds=60)),
        ((200, b"<html>secret"), timedelta(seconds=60)),
        ((200, b""), timedelta(seconds=60)),
        ((200, b'{"Data": {"AccessToken": "a'), timedelta(seconds=60)),
        ((200, {"Data": {"AccessToken": None}}), timedelta(seconds=60)),
        ((200, {"Data": "secret"}), timedelta(seconds=60)),
        ((302, b""), timedelta(seconds=60)),
    ],
)
def test_a_login_that_gives_no_token_says_how_long_to_wait(
    answer: tuple[int, Any] | Exception, wait: timedelta
) -> None:
    with pytest.raises(UplinkError) as error:
        redex(Platform(answer)).token(NOW)
    assert error.value.wait == wait
    assert error.value.hint
    assert "secret" not in error.value.message.replace("ClientSecret", "").replace("client_secret", "")


def test_a_token_that_no_header_can_carry_is_not_taken() -> None:
    with pytest.raises(ConfigError) as error:
        redex(Platform(given("CANARY\r\nX-Evil: 1"))).token(NOW)
    assert "CANARY" not in str(error.value)


# D-REC


def test_a_drec_token_is_renewed_seven_days_ahead() -> None:
    end = NOW + timedelta(days=180)
    first, second = jwt(int(end.timestamp())), jwt(int((end + timedelta(days=170)).timestamp()))
    platform = Platform((200, {"accessToken": first}), (200, {"accessToken": second}))
    login = drec(platform)
    assert login.token(NOW) == first
    assert login.expiry() == end
    assert login.token(end - timedelta(days=7, seconds=1)) == first
    assert login.token(end - timedelta(days=7)) == second
    assert platform.asked == [("/auth/login", {"username": "me@example.org", "password": "pass1word"})] * 2


def test_a_drec_token_with_a_short_life_is_not_fetched_for_every_request() -> None:
    platform = Platform((200, {"accessToken": jwt(int((NOW + HOUR).timestamp()))}))
    login = drec(platform)
    login.token(NOW)
    login.token(NOW + timedelta(minutes=30))
    assert len(platform.asked) == 1


def test_a_drec_token_without_an_end_is_taken_to_live_180_days() -> None:
    login = drec(Platform((201, {"accessToken": "opaque"})))
    login.token(NOW)
    assert login.expiry() == NOW + timedelta(days=180)


# Renewal


def test_several_callers_cause_one_renewal() -> None:
    entered, release = threading.Event(), threading.Event()
    tokens = iter(["a1", "a2", "a3"])
    asked = []

    def platform(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if len(asked) > 1:
            entered.set()
            assert release.wait(10)
        return httpx.Response(200, json=given(next(tokens))[1])

    login = redex_login(Http(BASE, transport=httpx.MockTransport(platform)), env("key"), env("id"), env("secret"))
    assert login.token(NOW) == "a1"
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(login.renew(NOW, "a1"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert entered.wait(10)
    release.set()
    for thread in threads:
        thread.join(10)
    assert results == [True] * 4
    assert login.token(NOW) == "a2"
    assert len(asked) == 2


def test_a_refused_token_is_not_used_again_when_its_renewal_fails() -> None:
    platform = Platform(given("a1"), httpx.ConnectError("no"), given("a2"))
    login = redex(platform)
    login.token(NOW)
    with pytest.raises(UplinkError):
        login.renew(NOW, "a1")
    assert login.token(NOW) == "a2"


def test_many_threads_at_the_end_of_a_token_cause_one_renewal_over_real_sockets() -> None:
    """The renewal is held open until all of them stand in the queue for it."""
    clock, most = FakeClock(NOW), 24
    with Sandbox(now=clock.now) as platform:
        http, entered, tokens = Http(platform.url), threading.Barrier(most), list[str]()
        given = platform.redex.credentials
        secrets = [env(given[key]) for key in ("ApiKey", "ClientId", "ClientSecret")]
        source = redex_login(http, *secrets)

        def use() -> None:
            entered.wait(20)
            found = Authorized(http, source, clock.now).exchange("GET", "/public/v2/generation-datas/statuses")
            assert isinstance(found, Answer) and found.status != 401
            tokens.append(source.token(clock.now()))

        for life in range(3):  # the first login, a renewal ahead of the end, and one after a revocation
            threads = [threading.Thread(target=use) for _ in range(most)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert len(tokens) == most * (life + 1) and len(set(tokens[-most:])) == 1
            clock.leap(minutes=50 if life == 0 else 1)
            if life == 1:
                platform.revoke()
        assert len(set(tokens)) == 3
        # One login and two renewals, the second of them after 24 refusals.
        assert (platform.requests["redex.token"], platform.requests["redex.refresh"]) == (1, 2)
        http.close()


class Script:
    """A platform that answers requests with the given statuses, and what it was sent with."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.seen = list(statuses), list[str]()
        self.slept: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request.headers["authorization"].removeprefix("Bearer "))
        return httpx.Response(self.statuses.pop(0), json={})

    def send(self, source: Any, **more: Any) -> Exchange:
        http = Http(BASE, transport=httpx.MockTransport(self))
        return Authorized(http, source, lambda: NOW, sleep=self.slept.append, **more).exchange("POST", "/x", body=b"{}")


class Tokens:
    """A source whose tokens are numbered; a list of errors stands for renewals that fail."""

    def __init__(self, renewable: bool = True, fails: Exception | None = None) -> None:
        self.number, self.renewable, self.fails = 1, renewable, fails

    def token(self, now: datetime) -> str:
        del now
        return f"t{self.number}"

    def renew(self, now: datetime, refused: str) -> bool:
        assert (now, refused) == (NOW, self.token(now))
        if self.fails:
            raise self.fails
        self.number += self.renewable
        return self.renewable

    by_hand = False

    def changed(self) -> bool:
        return False

    def expiry(self) -> datetime | None:
        return None

    def secrets(self) -> frozenset[str]:
        return frozenset()


@pytest.mark.parametrize(
    ("statuses", "renewable", "sent", "status"),
    [
        ([200], True, ["t1"], 200),
        ([401, 200], True, ["t1", "t2"], 200),
        ([401, 401], True, ["t1", "t2"], 401),
        ([401], False, ["t1"], 401),  # the same token again would be refused again
        ([403], True, ["t1"], 403),
    ],
)
def test_a_401_renews_once_and_repeats_once(statuses: list[int], renewable: bool, sent: list[str], status: int) -> None:
    script = Script(*statuses)
    found = script.send(Tokens(renewable))
    assert isinstance(found, Answer)
    assert (found.status, script.seen, script.statuses) == (status, sent, [])


@pytest.mark.parametrize(("statuses", "sent"), [([401, 200], ["t1", "t1"]), ([401, 401, 200], ["t1", "t1", "t2"])])
def test_a_hasty_use_waits_half_a_second_and_repeats_before_a_new_login(statuses: list[int], sent: list[str]) -> None:
    script = Script(*statuses)
    script.send(Tokens(), hasty=lambda answer: answer.status == 401)
    assert (script.seen, script.slept) == (sent, [0.5])


@pytest.mark.parametrize(
    ("fails", "rule", "wait"),
    [
        (UplinkError("login refused", hint="do", wait=HOUR), "login", HOUR),
        (ConfigError("no secret", hint="do"), "config", None),
    ],
)
def test_a_renewal_that_fails_means_that_nothing_was_stored(fails: Exception, rule: str, wait: timedelta) -> None:
    found = Script(401).send(Tokens(fails=fails))
    assert found == NotSent(rule, str(fails), "do", wait)


def test_a_repeat_that_is_not_answered_is_unclear() -> None:
    def platform(request: httpx.Request) -> httpx.Response:
        if request.headers["authorization"] == "Bearer t2":
            raise httpx.ReadTimeout("slow")
        return httpx.Response(401)

    http = Http(BASE, transport=httpx.MockTransport(platform))
    assert isinstance(Authorized(http, Tokens(), lambda: NOW).exchange("POST", "/x", body=b"{}"), Unclear)


def test_no_repr_and_no_error_shows_a_secret() -> None:
    platform = Platform(given("CANARY-a", "CANARY-r"), (401, {"Message": "CANARY-k CANARY-i CANARY-s CANARY-r"}))
    login = redex_login(platform.http, env("CANARY-k"), env("CANARY-i"), env("CANARY-s"))
    login.token(NOW)
    platform.answers.append((401, {"Message": "bad CANARY-k CANARY-s CANARY-a"}))
    with pytest.raises(UplinkError) as error:
        login.renew(NOW, "CANARY-a")
    shown = [
        repr(login),
        repr(login._grant),
        repr(platform.http),
        repr(env("CANARY-k")),
        repr(StaticToken(env("CANARY"))),
    ]
    shown += [repr(error.value), str(error.value), error.value.message, error.value.hint, repr(error.value.__context__)]
    assert not [text for text in shown if "CANARY" in text]
    assert login.secrets() == {"CANARY-a", "CANARY-r", "CANARY-k", "CANARY-i", "CANARY-s"}


# Ended, refused, or the clock


class Watch:
    """Our clock, and a platform with another one that answers all but HEAD by `status`."""

    def __init__(self, status: int = 200, apart: timedelta | None = None) -> None:
        self.status, self.apart = status, apart
        self.seen: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        dated = {} if self.apart is None else {"Date": format_datetime(NOW + self.apart, usegmt=True)}
        return httpx.Response(404 if request.method == "HEAD" else self.status, headers=dated, json={"Message": "No"})

    def ask(self, token: str) -> Exchange:
        http = Http(BASE, transport=httpx.MockTransport(self))
        return Authorized(http, StaticToken(env(token)), lambda: NOW).exchange("POST", "/x", body=b"{}")


def at(moment: datetime) -> int:
    return int(moment.timestamp())


@pytest.mark.parametrize(
    ("apart", "rule", "told"),
    [
        (timedelta(0), "token", "the token ended at 2026-05-01 00:00 UTC; nothing was sent"),
        (None, "token", "the token ended at 2026-05-01 00:00 UTC; nothing was sent"),
        (-HOUR, "token", "the token ended at 2026-05-01 00:00 UTC; nothing was sent"),
        (-48 * HOUR, "clock", "but that clock is 2 d ahead of the platform's; nothing was sent"),
    ],
)
def test_a_token_that_has_ended_is_told_before_anything_leaves(apart: timedelta | None, rule: str, told: str) -> None:
    platform = Watch(apart=apart)
    found = platform.ask(jwt(at(NOW - 24 * HOUR)))
    assert isinstance(found, NotSent) and (found.rule, found.wait) == (rule, timedelta(minutes=5))
    assert told in found.reason and ("NTP" in found.hint) == (rule == "clock")
    assert [(one.method, one.headers.get("authorization")) for one in platform.seen] == [("HEAD", None)]
    assert fault(found).token == (rule == "token")


@pytest.mark.parametrize(
    ("apart", "issued", "told"),
    [
        (3 * HOUR, None, "this gateway's clock is 3 h behind the platform's"),
        (-3 * HOUR, None, "this gateway's clock is 3 h ahead of the platform's"),
        (None, 3 * HOUR, "this gateway's clock is at least 3 h behind the platform's"),
        (timedelta(minutes=1), None, ""),
        (None, -HOUR, ""),
        (None, None, ""),
        (timedelta(0), 3 * HOUR, ""),  # the platform's word counts more than what stands in a token
    ],
)
def test_a_refused_token_is_told_apart_from_a_wrong_clock(
    apart: timedelta | None, issued: timedelta | None, told: str
) -> None:
    claims = {} if issued is None else {"iat": at(NOW + issued)}
    found = Watch(401, apart).ask(jwt(at(NOW + 900 * HOUR), **claims))
    if told:
        assert isinstance(found, NotSent) and found.rule == "clock"
        assert told in found.reason and "the token was refused" in found.reason and "NTP" in found.hint
    else:
        assert isinstance(found, Answer) and found.words() == "the token was refused: 401 No"


def test_a_login_whose_token_has_ended_by_our_clock_is_the_clocks_matter_and_no_reason_for_another_login() -> None:
    platform = Platform((200, {"accessToken": jwt(at(NOW - HOUR))}))
    with pytest.raises(UplinkError, match="clock is ahead of the platform's") as error:
        drec(platform).token(NOW)
    assert "NTP" in error.value.hint and error.value.wait == timedelta(minutes=5)


def test_a_captive_portal_in_the_way_of_a_login_is_named_and_not_quoted() -> None:
    with pytest.raises(UplinkError, match="captive portal") as error:
        redex(Platform((200, b"<html>CANARY"))).token(NOW)
    assert "CANARY" not in str(error.value) and "browser" in error.value.hint


# Changed secrets


def test_a_changed_secret_is_seen_however_it_was_put_in_place(tmp_path: Path) -> None:
    file = tmp_path / "credentials" / "token"
    secret = Secret(credential="token", environ={"CREDENTIALS_DIRECTORY": str(file.parent)})
    source = StaticToken(secret)
    with pytest.raises(ConfigError):
        source.token(NOW)
    assert not source.changed()  # there is still none
    file.parent.mkdir()
    file.write_text("one\n")
    assert source.changed() and source.token(NOW) == "one" and not source.changed()
    (tmp_path / "new").write_text("two\n")
    (tmp_path / "new").replace(file)  # whole, under the same name
    assert source.changed() and source.token(NOW) == "two"
    (tmp_path / "v3").write_text("six\n")
    file.unlink()
    file.symlink_to(tmp_path / "v3")  # as a container's secrets are
    assert source.changed() and source.token(NOW) == "six"
    (tmp_path / "v4").write_text("ten\n")
    (tmp_path / "link").symlink_to(tmp_path / "v4")
    (tmp_path / "link").replace(file)
    source.expiry()  # somebody else looked before
    assert source.changed() and source.token(NOW) == "ten"
    file.unlink()
    assert not source.changed()


def test_a_changed_password_is_seen_by_the_login(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("wrong")
    platform = Platform((401, {"message": "Unauthorized"}), (200, {"accessToken": "t2"}))
    login = drec_login(platform.http, env("me@example.org"), Secret(file=password))
    with pytest.raises(UplinkError):
        login.token(NOW)
    assert not login.changed()
    password.write_text("right1")
    assert login.changed() and not login.changed()
    assert login.token(NOW) == "t2"
