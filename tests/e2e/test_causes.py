"""What keeps a platform out of reach is named by `status`, with what to do; and none of it counts as delivered."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from heliograph import app, daemon, library
from heliograph.core.health import as_json
from heliograph.daemon import Daemon
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.rehearsal.server import Server
from tests.fakes import SINGAPORE, FakeClock
from tests.uplink.test_http import peer
from tests.uplink.test_tls import Authority, Proxy
from tests.work.test_deliver import make_store

CONFIG = """
[site]
id = "s"
timezone = "Asia/Singapore"
data_dir = "{folder}/data"
[[bus]]
id = "lan"
url = "{bus}"
every = "100ms"
store_every = "100ms"
[[meter]]
id = "m0"
bus = "lan"
map = "eastron-sdm630"
rated_kw = 50
report_as = {{ {platform} = "STR-m0" }}
[uplink.{platform}]
base_url = "{base}"
token = {{ file = "{folder}/token" }}
ca_file = "{folder}/Rehearsal Root.pem"
spread = "0s"
per_minute = 60
[clock]
trust = "always"
"""
PLATFORMS = pytest.mark.parametrize("platform", ["redex", "drec"])
SENDS = {"redex": "redex.batch", "drec": "drec.send"}


class Place:
    """One site, and what stands where its platform should be."""

    def __init__(self, platform: str, folder: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
        self.platform, self.folder, self.stack, self.monkeypatch = platform, folder, stack, monkeypatch
        self.clock = FakeClock()
        make_store(folder / "data", self.clock, meters=1, days=1).close()
        self.authority = Authority(folder)
        self.token("token")
        self.apart = timedelta(0)
        """Of the platform's clock."""
        self.sandbox = stack.enter_context(
            Sandbox(now=lambda: self.clock.now() + self.apart, token="token", timezone=SINGAPORE.key)
        )
        self.base = self.sandbox.url

    def token(self, text: str) -> None:
        (self.folder / "token").write_text(text)

    def fault(self, kind: str) -> None:
        self.sandbox.fault(kind, 1000)

    def port(self, serve: Callable[[socket.socket], None], context: ssl.SSLContext | None = None) -> None:
        self.base = f"http{'s' if context else ''}://127.0.0.1:{self.stack.enter_context(peer(serve, context))}"

    def load(self, bus: str = "tcp://127.0.0.1:1", clock: Any = None) -> app.App:
        config = self.folder / "config.toml"
        base = self.base + ("/api" if self.platform == "drec" else "")
        config.write_text(CONFIG.format(folder=self.folder, bus=bus, platform=self.platform, base=base))
        return app.load(config, clock or self.clock)


@contextmanager
def place(platform: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ExitStack() as stack:
        yield Place(platform, folder, stack, monkeypatch)


def says(answer: bytes) -> Callable[[Place], None]:
    def serve(connection: socket.socket) -> None:
        while connection.recv(65536):
            connection.sendall(answer)

    return lambda one: one.port(serve)


def nothing(connection: socket.socket) -> None:
    connection.recv(65536)


def refused(one: Place) -> None:
    one.sandbox.away = True


def unknown_name(one: Place) -> None:
    one.base = "https://platform.invalid"


def intercepted(one: Place) -> None:
    one.port(nothing, Authority(one.folder, "Hotel Firewall").server())


def portal_by_name(one: Place) -> None:
    one.port(nothing, one.authority.server(address="", names=("portal.hotel.example",)))


def expired(one: Place) -> None:
    one.port(nothing, one.authority.server(begins=timedelta(days=-9), ends=timedelta(days=-2)))


def proxy(one: Place) -> None:
    port = one.stack.enter_context(peer(Proxy(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")))
    one.monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
    one.base = "https://platform.example"


def other_token(one: Place) -> None:
    one.token("another")


def no_token(one: Place) -> None:
    one.token("token\nand more")


def jwt(end: datetime) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": end.timestamp()}).encode()).decode().rstrip("=")
    return f"e30.{claims}.c2ln"


def ended(one: Place) -> None:
    one.token(jwt(one.clock.now() - timedelta(days=1)))


def wrong_clock(one: Place) -> None:
    one.apart = timedelta(hours=3)
    one.token("another")


def ahead(one: Place) -> None:
    one.apart = timedelta(days=-9)
    one.token(jwt(one.clock.now() - timedelta(days=1)))


PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"
CAUSES: dict[str, tuple[Callable[[Place], None], str, str]] = {
    "portal by a page": (lambda one: one.fault("html"), "the sign-in of a captive portal perhaps", "browser"),
    "portal by a redirect": (lambda one: one.fault("redirect"), "captive portal perhaps: redirect to /_san", "browser"),
    "portal by 511": (says(PAGE.replace(b"200 OK", b"511 X")), "the network wants a sign-in", "browser"),
    "portal by its certificate": (portal_by_name, "is for portal.hotel.example, signed by Reh", "browser"),
    "interception": (intercepted, "signed by Hotel Firewall, which this gateway does not know", "ca_file"),
    "expired certificate": (expired, "the certificate of 127.0.0.1 ended ", "has to renew it"),
    "name service": (unknown_name, "the name platform.invalid cannot be resolved", "name service"),
    "refused connection": (refused, "refuses the connection", "firewall"),
    "proxy": (proxy, "it wants a user and a password", "HTTPS_PROXY"),
    "token refused": (other_token, "the token was refused: 401", "Check the token"),
    "token unreadable": (no_token, "more than one line", "Write the secret"),
    "token ended": (ended, "the token ended at 2026-03-", "Put a new token in its place"),
    "clock behind": (wrong_clock, "this gateway's clock is 3 h behind the platform's", "NTP"),
    "clock ahead": (ahead, "but that clock is 9 d ahead of the platform's; nothing was sent", "NTP"),
    "account": (lambda one: one.fault("403"), "403", "account"),
}


@PLATFORMS
@pytest.mark.parametrize("name", CAUSES)
def test_status_names_what_keeps_a_platform_from_getting_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, name: str
) -> None:
    arrange, told, to_do = CAUSES[name]
    with place(platform, tmp_path, monkeypatch) as one:
        arrange(one)
        site = one.load()
        with site.writer() as store:
            running = Daemon(site, store)
            running._deliver(running.uplinks[0])
            status = as_json(running.health())
            assert set(shown(status, platform)["rows"]) <= {"due", "unclear"}, status
            (alarm,) = alarms(status, platform)
            assert alarm.startswith(f"{platform}: paused until ")
            assert told in alarm and to_do in alarm, alarm
            assert told in shown(status, platform)["trouble"] and to_do in shown(status, platform)["remedy"]
            running.uplinks[0].close()
        assert one.sandbox.total_wh("redex" if platform == "redex" else "drec", "STR-m0") == 0


@PLATFORMS
@pytest.mark.parametrize(
    ("fault", "told"),
    [("empty", "200 and nothing else, from a captive portal or a proxy perhaps"), ("drop-before", "no answer from")],
)
def test_what_is_only_unclear_is_told_without_an_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, fault: str, told: str
) -> None:
    with place(platform, tmp_path, monkeypatch) as one:
        one.fault(fault)
        site = one.load()
        with site.writer() as store:
            running = Daemon(site, store)
            running._deliver(running.uplinks[0])
            status = as_json(running.health())
            assert told in shown(status, platform)["trouble"] and "unclear" in shown(status, platform)["rows"]
            assert alarms(status, platform) == []
            running.uplinks[0].close()


@PLATFORMS
def test_a_rate_limit_is_shown_and_needs_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    with place(platform, tmp_path, monkeypatch) as one:
        one.fault("429")
        site = one.load()
        with site.writer() as store:
            running = Daemon(site, store)
            running._deliver(running.uplinks[0])
            status = as_json(running.health())
            assert (
                "429" in shown(status, platform)["trouble"]
                and "tried again by itself" in shown(status, platform)["remedy"]
            )
            assert alarms(status, platform) == []
            running.uplinks[0].close()


class RealClock(FakeClock):
    """The machine's clock, so that the daemon's own threads see time pass."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def since_boot(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@PLATFORMS
def test_polling_goes_on_while_a_token_is_refused_and_a_new_one_ends_the_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    monkeypatch.setattr(daemon, "DELIVER_EVERY", timedelta(seconds=0.1))
    meter = SimulatedMeter(
        library.load("eastron-sdm630", local=None).map, clock=lambda: datetime.now(UTC), start_export_wh=41_230_700
    )
    with place(platform, tmp_path, monkeypatch) as one, Server({1: meter}) as server:
        one.clock = RealClock()
        one.token("refused")
        site = one.load(server.url, one.clock)
        with site.writer() as store:
            running = Daemon(site, store)
            running.start()
            try:
                status = until(running, lambda seen: alarms(seen, platform))
                (alarm,) = alarms(status, platform)
                assert "paused until" in alarm and "the token was refused" in alarm and "Check the token" in alarm
                asked = one.sandbox.requests[SENDS[platform]]
                polled = until(running, lambda seen: "lan" in seen["buses"])["buses"]["lan"]["answers"]
                until(running, lambda _: running.live.buses["lan"].answers > polled + 30)
                assert running.live.at["m0"] > datetime.now(UTC) - timedelta(seconds=60)
                assert one.sandbox.requests[SENDS[platform]] == asked <= 2  # the pause holds
                fresh = tmp_path / "fresh"
                fresh.write_text("token")
                fresh.replace(tmp_path / "token")
                until(running, lambda seen: set(shown(seen, platform)["rows"]) <= {"accepted", "confirmed"})
                until(running, lambda seen: not alarms(seen, platform))
            finally:
                running.stop()


def until(running: Daemon, true: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while not true(status := as_json(running.health())):
        assert time.monotonic() < deadline, status
        time.sleep(0.05)
    assert isinstance(status, dict)
    return status


def shown(status: dict[str, Any], platform: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in status["uplinks"] if one["name"] == platform)
    return found


def alarms(status: dict[str, Any], platform: str) -> list[str]:
    return [line for line in status["alarms"] if line.startswith(f"{platform}:")]
