"""No secret is found anywhere but where its owner put it: a canary in every form, through every accident.

The daemon runs as a process of its own against platforms that throw back what they were sent; then everything that it
wrote, logged, showed or handed on is searched.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import sqlite3
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from datetime import timedelta
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from heliograph.rehearsal.sandbox import Sandbox
from heliograph.rehearsal.sandbox_exchange import Answer, Exchange
from tests.e2e.test_logins import CONFIG
from tests.fakes import SINGAPORE, FakeClock, free_port
from tests.outputs.mosquitto import Listener, Mosquitto, needs_mosquitto, until
from tests.work.test_deliver import make_store

SECRETS = {
    "key": 'KeyCaNaRy"/4pZ+w\\7uQ',
    "id": "IdCaNaRy-8Hh2+Lm/0",
    "secret": "SecCaNaRy'9#kV&t<b>",
    "user": "CaNaRy+Owner7q@example.org",
    "password": "PwCaNaRy%5/Rd+",
    "token": "TokCaNaRy+/3x9.Zq~8=w",
    "mqtt": "MqttCaNaRy%2/&w+9Kp",
    "sparkplug": 'SparkCaNaRy"7\\b+Ue',
    "web": "WebCaNaRy+/4t-Hn6.Zs9",
}
# Who shows the site, each with a secret of its own.
OUTPUTS = """
[mqtt]
url = "{broker}"
username = "gateway"
password = {{ file = "{folder}/mqtt" }}
home_assistant = "homeassistant"
[sparkplug]
url = "{broker}"
username = "node"
password = {{ env = "SPARKPLUG_PASSWORD" }}
group = "solar"
[web]
listen = "127.0.0.1:{web}"
token = {{ file = "{folder}/web" }}
[metrics]
listen = "127.0.0.1:{metrics}"
"""
BIRTH = "spBv1.0/solar/NBIRTH/s"
COMMAND = "spBv1.0/solar/DCMD/s"
ASKED = (
    "status",
    "meters",
    "meters/m0",
    "meters/m0/readings",
    "days",
    "days/2026-03-14/explain?meter=m0",
    "outbox",
    "events",
)

TURNS = 36
# The daemon as a site runs it, on a fast clock, at the level that says most; its second delivery dies of an exception
# that quotes what it was sending with. What processes it starts are shown is written down by an audit hook.
PROGRAM = """
import os, sys
def hook(event, args, seen=[]):
    if event == "subprocess.Popen":
        executable, command, cwd, env = args
        with open(sys.argv[-1], "a") as file:
            print(command, dict(os.environ) if env is None else env, file=file)
sys.addaudithook(hook)
from heliograph import daemon
from heliograph.logs import set_up
deliver, calls = daemon.deliver, []
def dying(uplink, *rest):
    calls.append(uplink)
    deliver(uplink, *rest)
    if len(calls) in (3, 4):
        known = sorted(uplink.tokens.secrets())
        raise RuntimeError("cannot send", known, {"Authorization": "Bearer " + known[-1]})
daemon.deliver = dying
import tests.e2e.site as site
site.set_up = lambda level: set_up("debug")
site.main()
"""


def forms(secret: str) -> set[bytes]:
    """A secret as it might be written somewhere. (On purpose not the product's own list.)"""
    raw = secret.encode()
    found = {raw, raw.swapcase(), raw.hex().encode(), raw.hex().upper().encode()}
    found |= {json.dumps(secret)[1:-1].encode(), json.dumps(json.dumps(secret))[3:-3].encode()}
    found |= {quote(secret).encode(), quote_plus(secret).encode(), quote(secret, safe="").encode()}
    for before in (b"", b"a", b"ab"):
        for coded in (base64.b64encode(before + raw), base64.urlsafe_b64encode(before + raw)):
            found.add(coded[4 if before else 0 : -4])
    return found


def written(secret: str, before: str = "") -> list[str]:
    """A secret behind something else, in each form as a whole."""
    raw = (before + secret).encode()
    coded = [base64.b64encode(raw), base64.urlsafe_b64encode(raw), raw.hex().encode(), raw.hex().upper().encode()]
    text = raw.decode()
    quoted = [quote(text), quote_plus(text), quote(text, safe=""), json.dumps(text)[1:-1]]
    return [text, text.swapcase(), *quoted, *(one.decode() for one in coded)]


def leaks(secrets: Mapping[str, str], content: bytes) -> list[str]:
    """Which secrets stand in there, and how."""
    return [f"{name}: {form!r}" for name, secret in secrets.items() for form in forms(secret) if form in content]


class Parrot(Sandbox):
    """Says back what it was sent with, in another form each time; else a stand-in like the other."""

    given: set[str]
    turn = 0

    def answer(self, exchange: Exchange, headers: dict[str, str], body: bytes, client: str) -> Answer:
        lower = {name.lower(): value for name, value in headers.items()}
        self.turn += 1
        login = exchange.kind in ("redex.token", "redex.refresh", "drec.login")
        if self.turn % 3 == 0 or (login and self.turn % 2):
            return self._parrot(lower.get("authorization", "").removeprefix("Bearer "), body, login)
        answer = super().answer(exchange, headers, body, client)
        if login and answer.status < 300:
            told = json.loads(answer.body)
            data = told.get("Data") or told
            self.given |= {data[name] for name in ("AccessToken", "RefreshToken", "accessToken") if data.get(name)}
        return answer

    def _parrot(self, token: str, body: bytes, login: bool) -> Answer:
        sent = [str(value) for value in json.loads(body).values()] if login and body else [token]
        ways = [way for one in sent if len(one) > 8 for before in ("", "a", "ab") for way in written(one, before)]
        word = ways[self.turn % len(ways)] if ways else "nothing"
        json_type = ("Content-Type", "application/json")
        trace = f'Traceback: File "/srv/app.js" Authorization {word} in {token} \n at {word}'
        answers = [
            Answer(401, (json_type,), json.dumps({"StatusCode": 401, "Message": f"Unauthorized {word}"}).encode()),
            Answer(401, (json_type,), json.dumps({"statusCode": 401, "message": f"Unauthorized: {word}"}).encode()),
            Answer(500, (json_type,), json.dumps({"statusCode": 500, "message": trace}).encode()),
            Answer(500, (("Content-Type", "text/html"),), f"<pre>{trace}</pre>".encode()),
            Answer(200, (("Content-Type", "text/html"),), f"<html>Welcome, {word}! {token}".encode()),
            Answer(302, (("Location", f"https://portal.example/{quote(word)}?token={quote(token)}"),)),
            Answer(200, (), b"\x00\xff" + word.encode() + b"\x80" + token.encode()),
            Answer(409, (json_type,), json.dumps({"success": False, "message": f"what is {word}"}).encode()),
            Answer(422, (json_type,), json.dumps({"StatusCode": 422, "Message": word, "Errors": [word]}).encode()),
        ]
        return answers[self.turn // 3 % len(answers)]


def everything(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below, and what is packed inside."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with suppress(OSError):
                yield from unpacked(path.name, path.read_bytes())


def unpacked(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    yield name, content
    with suppress(Exception):
        yield f"{name} (gzip)", gzip.decompress(content)
    with suppress(Exception), zipfile.ZipFile(io.BytesIO(content)) as pack:
        for inner in pack.namelist():
            yield from unpacked(f"{name}:{inner}", pack.read(inner))
    with suppress(Exception), tarfile.open(fileobj=io.BytesIO(content)) as pack:
        for member in pack:
            if (file := pack.extractfile(member)) is not None:
                yield from unpacked(f"{name}:{member.name}", file.read())
    if content.startswith(b"SQLite format 3"):
        held = sqlite3.connect(":memory:")
        held.deserialize(content)
        with suppress(sqlite3.Error):
            for (packed,) in held.execute("SELECT body FROM claim"):
                yield f"{name} (a request)", zlib.decompress(packed)
        held.close()


class Shown:
    """What those see whom the site is shown to: somebody at the broker, at the REST and at /metrics."""

    def __init__(self, folder: Path) -> None:
        self.passwords = {"gateway": SECRETS["mqtt"], "node": SECRETS["sparkplug"], "observer": "sees everything"}
        self.folder = folder
        home = folder / "mosquitto"
        home.mkdir()
        self.broker = Mosquitto(home, passwords=self.passwords, lines=("log_type all",))
        self.broker.start()
        self.listener = Listener(self.broker, ("#",), "observer", self.passwords["observer"])
        self.web, self.metrics = free_port(), free_port()

    def section(self, private: Path) -> str:
        return OUTPUTS.format(folder=private, broker=self.broker.url, web=self.web, metrics=self.metrics)

    def seen(self) -> dict[str, bytes]:
        for topic in ("heliograph/s/status", "heliograph/s/state", BIRTH):
            self.listener.wait_for(topic)
        log = self.broker.log().encode()  # before what we say ourselves
        # A stranger's command that names what it should not know; it stands in the log.
        self.listener.say(f"{COMMAND}/{quote(SECRETS['mqtt'], safe='')}", b"no command")
        self.listener.settle()
        until(lambda: b"sparkplug_command_ignored" in (self.folder / "log").read_bytes(), "it does not hear")
        told = {
            f"topic {number}": f"{one.topic} ".encode() + one.payload
            for number, one in enumerate(self.listener.messages)
            if not one.topic.startswith(COMMAND)
        }
        for path in (*(f"api/v1/{one}" for one in ASKED), "healthz", "readyz"):
            told[f"REST {path}"] = self._asked(self.web, path)
        told["broker's log"] = log
        told["REST without a token"] = self._asked(self.web, "api/v1/status", token="")
        told["REST with another one"] = self._asked(self.web, "api/v1/status", token="WebCaNaR")
        told["metrics"] = self._asked(self.metrics, "metrics")
        assert b"heliograph_" in told["metrics"] and b'"meter"' in told["REST api/v1/meters/m0"]
        assert any(one.topic.startswith("homeassistant/device/") for one in self.listener.messages)
        return told

    def close(self) -> None:
        self.listener.close()
        self.broker.stop()

    @staticmethod
    def _asked(port: int, path: str, token: str = SECRETS["web"]) -> bytes:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", f"/{path}", headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return str(answer.getheaders()).encode() + answer.read()


def prepared(folder: Path, clock: FakeClock, platform: Parrot, *, static: bool) -> Path:
    """A site of one meter with some days to send, by log-ins or by a token that is the same for both platforms."""
    make_store(folder / "data", clock, meters=1, days=12).close()
    (folder / "private").mkdir()
    for name, secret in SECRETS.items():
        (folder / "private" / name).write_text(secret + "\n")
    platform.redex.credentials = {
        "ApiKey": SECRETS["key"], "ClientId": SECRETS["id"], "ClientSecret": SECRETS["secret"]
    }  # fmt: skip
    platform.drec.username, platform.drec.password = SECRETS["user"], SECRETS["password"]
    text = CONFIG.format(folder=folder / "private", url=platform.url)
    text = text.replace(f'data_dir = "{folder}/private/data"', f'data_dir = "{folder}/data"')
    if static:
        token = f'token = {{ file = "{folder}/private/token" }}'
        text = "\n".join(token if line.startswith("login") else line for line in text.splitlines())
    config = folder / "config.toml"
    config.write_text(text + '\n[clock]\ntrust = "always"\n')
    return config


@pytest.mark.parametrize("static", [False, pytest.param(True, marks=needs_mosquitto)], ids=["log-in", "token"])
def test_no_secret_is_found_anywhere(tmp_path: Path, static: bool) -> None:
    clock, told = FakeClock(), dict[str, bytes]()
    environment = {**os.environ, "DREC_PASSWORD": SECRETS["password"], "PYTHONPATH": str(Path(__file__).parents[2])}
    environment["SPARKPLUG_PASSWORD"] = SECRETS["sparkplug"]
    rate = 3600.0
    began = time.monotonic()
    start = FakeClock().now() + timedelta(days=12, hours=1)

    def now():  # type: ignore[no-untyped-def]  # as the daemon reckons it
        return start + timedelta(seconds=(time.monotonic() - began) * rate)

    with ExitStack() as stack:
        platform = stack.enter_context(Parrot(now=now, rate=rate, token=SECRETS["token"], timezone=SINGAPORE.key))
        platform.given = set()
        config = prepared(tmp_path, clock, platform, static=static)
        shown = Shown(tmp_path) if static else None  # once is enough
        if shown is not None:
            stack.callback(shown.close)
            config.write_text(config.read_text() + shown.section(tmp_path / "private"))
        log = (tmp_path / "log").open("wb")
        command = [sys.executable, "-c", PROGRAM, str(config), start.isoformat(), str(rate), str(began), "listen"]
        command.append(str(tmp_path / "children"))
        with subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tmp_path) as child:
            try:
                wait = time.monotonic() + 90
                while platform.turn < TURNS or b"job_crashed" not in (tmp_path / "log").read_bytes():
                    assert child.poll() is None, (tmp_path / "log").read_text()
                    assert time.monotonic() < wait, platform.requests
                    time.sleep(0.1)
                for name, words in {
                    "check": ["check", "--json"],
                    "status": ["status", "--json"],
                    "status for people": ["status"],
                    "backlog": ["backlog", "--json"],
                    "backlog for people": ["backlog"],
                    "explain": ["explain", "m0", "2026-03-14"],
                    "explain for scripts": ["explain", "m0", "2026-03-15", "--json"],
                    "page": ["explain", "m0", "2026-03-14", "--html", str(tmp_path / "page.html")],
                    "export": ["export", str(tmp_path / "pack"), "--to", "2026-03-19"],
                    "backup": ["backup", str(tmp_path / "copy.db")],
                    "support": ["support", str(tmp_path / "support.zip")],
                }.items():
                    line = [sys.executable, "-m", "heliograph", *words, "--config", str(config)]
                    done = subprocess.run(
                        line, capture_output=True, env=environment, cwd=tmp_path, check=False, timeout=60
                    )
                    told[name] = done.stdout + done.stderr
                    assert done.returncode in (0, 1), (name, told[name])
                if shown is not None:
                    told |= shown.seen()
                told["command line"] = Path(f"/proc/{child.pid}/cmdline").read_bytes()
                told |= dict(everything(tmp_path / "data"))  # with the journal that is being written
            finally:
                child.terminate()
                child.wait(30)
        log.close()
        secrets = {**SECRETS, **{f"given {number}": one for number, one in enumerate(sorted(platform.given))}}
        assert static or len(secrets) > len(SECRETS) + 2
    told |= {f"afterwards {name}": content for name, content in everything(tmp_path / "data")}
    told |= {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    told |= dict(unpacked("pack", (tmp_path / "pack").read_bytes()))
    told |= dict(unpacked("copy", (tmp_path / "copy.db").read_bytes()))
    told |= dict(unpacked("support", (tmp_path / "support.zip").read_bytes()))
    assert b'"running": true' in told["support:heliograph-support/status.json"]
    assert b"RuntimeError" in told["log"] and b"***" in told["log"], "nothing was thrown back"
    assert b"heliograph.seal" in told["children"]
    assert {name: found for name, content in told.items() if (found := leaks(secrets, content))} == {}


def test_a_secret_written_into_the_configuration_is_not_quoted(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    for wrong in (
        'token = "{}"',
        'token = {{ file = "x", env = "{}" }}',
        'tokn = "{}"',
        'login = {{ api_key = "{}" }}',
    ):
        secret = "TokCaNaRy-3x9Zq8w"
        config.write_text(
            '[site]\nid = "s"\ntimezone = "Asia/Singapore"\n[[bus]]\nid = "b"\nurl = "tcp://127.0.0.1:1"\n[[meter]]\n'
            'id = "m"\nbus = "b"\nmap = "eastron-sdm630"\nrated_kw = 5\n[uplink.redex]\nbase_url = "https://x.example"\n'
            + wrong.format(secret)
        )
        line = [sys.executable, "-m", "heliograph", "check", "--config", str(config)]
        done = subprocess.run(line, capture_output=True, check=False)
        assert done.returncode == 78 and done.stderr
        assert leaks({"token": secret}, done.stdout + done.stderr) == [], done.stderr


@pytest.mark.parametrize("secret", SECRETS.values())
def test_a_leak_would_be_seen_in_every_form(secret: str) -> None:
    """Negative control: each form, wherever it begins, in the middle of something else."""
    for before in ("", "x", "xy", "xyz"):
        for one in written(secret + "!", before):
            assert leaks({"it": secret}, f"junk {one} junk".encode()), one
    assert leaks({"it": secret}, b"nothing of it") == []
