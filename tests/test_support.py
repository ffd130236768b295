"""The bundle for support: what is in it, whatever is broken, and what must never be."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from heliograph import app, control, support
from heliograph.cli import heliograph
from heliograph.daemon import Daemon
from heliograph.rehearsal.server import Server
from heliograph.store import Store
from heliograph.store.connection import FILE
from tests.e2e.test_secrets import SECRETS as ALL
from tests.e2e.test_secrets import Parrot, leaks, prepared, unpacked, written
from tests.fakes import START, FakeClock
from tests.work.test_record import SERIAL, sdm630

# Those of the outputs stand in no configuration here.
SECRETS = {name: secret for name, secret in ALL.items() if name not in ("mqtt", "sparkplug", "web")}

CONFIG = """\
# our site, password is hunter2hunter2
[site]
id = "sg-0042"
timezone = "Asia/Singapore"   # who asks?
data_dir = "{folder}/data"
latitude = 1.352083
longitude = 103.819836
[[bus]]
id = "lan"
url = "{url}"
every = "1h"
[[meter]]
id = "roof"
bus = "lan"
map = "eastron-sdm630"
rated_kw = 50
serial = "{serial}"
report_as = {{ redex = "STR1" }}
[uplink.redex]
base_url = "https://uat-api.redex.eco"
token = {{ file = "{folder}/token" }}
[clock]
trust = "always"
"""
PARTS = [
    "README.txt", "check.txt", "config.toml", "status.json", "backlog.json", "events.json", "frames.txt", "maps.json",
    "versions.json", "system.json", "service.txt",
]  # fmt: skip


def site(folder: Path, url: str = "tcp://127.0.0.1:1", serial: str = str(SERIAL)) -> Path:
    (folder / "token").write_text(SECRETS["token"] + "\n")
    config = folder / "config.toml"
    config.write_text(CONFIG.format(folder=folder, url=url, serial=serial))
    return config


@contextmanager
def gateway(config: Path) -> Iterator[Daemon]:
    found = app.load(config)
    with found.writer() as store:
        running = Daemon(found, store)
        answering = control.Control(found.socket, running.answer, running.rest)
        running.start()
        try:
            yield running
        finally:
            answering.close()
            running.stop()


def gathered(config: Path, folder: Path, **more: bool) -> support.Bundle:
    return support.gather(config, local=folder / "meters", environ={}, **more)


def run(*words: str) -> Result:
    return CliRunner().invoke(heliograph, list(words), standalone_mode=False)


# --- running and stopped --------------------------------------------------------------------------------------------


def polled(running: Daemon) -> None:
    running._poll(running.lines[0])
    assert running.live.values["roof"]


def test_the_bundle_of_a_running_gateway_has_everything_and_masks_the_meters_serial_number(tmp_path: Path) -> None:
    with Server({1: sdm630()}) as server:
        config = site(tmp_path, server.url)
        with gateway(config) as running:
            polled(running)
            masked = gathered(config, tmp_path)
            open_ = gathered(config, tmp_path, with_serials=True)
    assert list(masked.parts) == PARTS and masked.missing == {} and masked.site == "sg-0042"
    status = json.loads(masked.parts["status.json"])
    assert status["running"] and status["buses"]["lan"]["answers"] > 2 and status["meters"][0]["state"] == "ok"
    assert json.loads(masked.parts["system.json"])["gateway"]["socket"]
    frames = masked.parts["frames.txt"]
    assert re.search(r"^lan: \d+ requests, \d+ answers", frames, re.M)
    assert re.search(r"^ +-\d+\.\d{3} > (00 0\w|\w\w \w\w) ", frames, re.M)
    number = SERIAL.to_bytes(4, "big").hex(" ")
    assert number not in frames and (12345678).to_bytes(4, "big").hex(" ") in frames
    assert not any(str(SERIAL) in text for text in masked.parts.values())
    assert 'serial = "12345678"' in masked.parts["config.toml"]
    # negative control: it is there where somebody wants it
    assert number in open_.parts["frames.txt"] and f'serial = "{SERIAL}"' in open_.parts["config.toml"]


def test_the_bundle_of_a_stopped_gateway_says_what_was_stored_last(tmp_path: Path) -> None:
    with Server({1: sdm630()}) as server:
        config = site(tmp_path, server.url)
        with gateway(config) as running:
            polled(running)
            running.store.journal.event(
                START, "storage", "store", f"the serial number changed from {SERIAL} to 87650091"
            )
    found = gathered(config, tmp_path)
    assert found.missing == {}
    assert not json.loads(found.parts["status.json"])["running"]
    assert json.loads(found.parts["events.json"])[0]["text"] == "the serial number changed from 12345678 to 12345678"
    assert "not running" in found.parts["frames.txt"]
    assert json.loads(found.parts["system.json"])["gateway"] == {"socket": False, "holds_the_store": None}
    assert json.loads(found.parts["backlog.json"])["rows"] == 0
    assert json.loads(found.parts["system.json"])["files"][FILE] > 0
    (map,) = json.loads(found.parts["maps.json"])
    assert map["name"] == "eastron-sdm630" and len(map["digest"]) == 64 and map["from"] == "shipped"


def test_who_holds_the_store_is_told_although_it_may_not_answer(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert support.holder(lock, "") is None
    lock.touch()
    found = lock.stat()
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    line = "1: {}  ADVISORY  WRITE 4711 {}:{} 0 EOF\n"
    assert support.holder(lock, line.format("FLOCK", device, found.st_ino)) == 4711
    assert support.holder(lock, line.format("POSIX", device, found.st_ino)) is None
    assert support.holder(lock, line.format("FLOCK", device, found.st_ino + 1)) is None
    assert support.holder(lock, line.format("FLOCK", "ff:ff", found.st_ino)) is None


def test_texts_of_local_maps_and_their_faults_are_in_it(tmp_path: Path) -> None:
    (tmp_path / "meters").mkdir()
    (tmp_path / "meters" / "mine.toml").write_text('name = "mine"\nmax_words = "many"\n')
    found = gathered(site(tmp_path), tmp_path)
    assert found.parts["maps/mine.toml"].startswith('name = "mine"')
    rows = {one["name"]: one for one in json.loads(found.parts["maps.json"])}
    assert set(rows) == {"mine", "eastron-sdm630"} and rows["mine"]["from"] == "local" and rows["mine"]["problems"]


# --- what is broken costs its own part and no other -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[[meter]]", "[[meter]", "not TOML"),
        ('map = "eastron-sdm630"', 'map = "eastron-sdm63"', "no map eastron-sdm63"),
        ("rated_kw = 50", 'rated_kw = "fifty"', "rated_kw"),
        ("rated_kw", "rated_kv", "unknown key meter[1].rated_kv"),
        ("token = {{", "tokn = {{", "tokn"),
    ],
)
def test_a_broken_configuration_is_sent_with_its_error(old: str, new: str, told: str, tmp_path: Path) -> None:
    config = site(tmp_path)
    (tmp_path / "data").mkdir()
    Store.writer(tmp_path / "data").close()
    text = config.read_text().replace(old.replace("{{", "{"), new.replace("{{", "{"))
    config.write_text(text)
    found = gathered(config, tmp_path)
    assert told in found.parts["check.txt"]
    assert set(found.missing) == {"status.json"}  # the store alone does not know what is polled
    shown = found.parts["config.toml"].splitlines()
    assert len(shown) == len(text.splitlines())
    named = re.search(r"config\.toml:(\d+)", found.parts["check.txt"])
    assert named is None or shown[int(named[1]) - 1]
    assert json.loads(found.parts["events.json"]) == []
    assert leaks(SECRETS, "".join(found.parts.values()).encode()) == []


def test_no_configuration_at_all_still_makes_a_bundle(tmp_path: Path) -> None:
    found = gathered(tmp_path / "nothing.toml", tmp_path)
    assert "cannot be read" in found.parts["check.txt"] and found.site == "unknown"
    assert {"config.toml", "status.json", "backlog.json", "events.json"} <= set(found.missing)
    assert json.loads(found.parts["versions.json"])["heliograph"]
    for name in found.missing:
        assert name in found.parts["README.txt"].split("What could not be had:")[1]


@pytest.mark.parametrize("damage", ["garbage", "torn", "empty", "missing", "no table"])
def test_a_damaged_store_costs_what_it_held(damage: str, tmp_path: Path) -> None:
    config = site(tmp_path)
    with app.load(config).writer():
        pass
    store = tmp_path / "data" / FILE
    content = store.read_bytes()
    if damage == "garbage":
        store.write_bytes(os.urandom(len(content)))
    elif damage == "torn":
        store.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        store.write_bytes(b"")
    elif damage == "missing":
        store.unlink()
    else:
        store.write_bytes(
            content.replace(b"CREATE TABLE [event]", b"CREATE TABLE [evenx]").replace(b'"event"', b'"evenx"')
        )
    found = gathered(config, tmp_path)
    assert "fit to run" in found.parts["check.txt"]
    assert list(found.parts) == PARTS
    assert damage == "no table" or {"status.json", "backlog.json", "events.json"} == set(found.missing)
    assert all(words.strip() for words in found.missing.values())


# --- what must not be in it -----------------------------------------------------------------------------------------


def careless(folder: Path) -> Path:
    """A site whose secrets were written everywhere: in comments, a local map, the journal, behind wrong keys."""
    clock = FakeClock()
    with Parrot(now=clock.now) as platform:
        config = prepared(folder, clock, platform, static=False)
    ways = [way for secret in SECRETS.values() for before in ("", "a", "ab") for way in written(secret, before)]
    store = Store.writer(folder / "data")
    for way in ways:
        store.journal.event(START, "refused", "m0", f"401 Unauthorized {way} and {json.dumps(way)}")
    store.close()
    (folder / "meters").mkdir()
    notes = "\n".join("# " + way.replace("\n", " ") for way in ways)
    (folder / "meters" / "mine.toml").write_text(f'{notes}\nname = "mine"\n')
    quoted = [json.dumps(way) for way in ways]
    text = config.read_text() + "\n" + "\n".join(f"# {way}" for way in ways)
    text += "\n[uplink.drec.more]\n" + "\n".join(f"key{n} = {way}" for n, way in enumerate(quoted))
    secret = SECRETS["id"]
    text += f'\nid = {quoted[0]}\nurl = "http://u:{secret.replace("/", "%2F")}@host/?k={secret}"'
    config.write_text(text)
    return config


ENVIRON = {
    "DREC_PASSWORD": SECRETS["password"],
    "HELIOGRAPH_UPLINK__REDEX__TOKEN__FILE": SECRETS["token"],
    "HELIOGRAPH_SITE__ID": "sg-0042",
    "HTTPS_PROXY": f"http://someone:{SECRETS['id'].replace('/', '%2F')}@proxy.example:3128",
}


def everything(bundle: support.Bundle) -> dict[str, bytes]:
    return dict(unpacked("bundle", bundle.packed()))


def test_no_secret_is_in_any_byte_of_it(tmp_path: Path) -> None:
    config = careless(tmp_path)
    bundle = support.gather(config, local=tmp_path / "meters", environ=ENVIRON)
    told = everything(bundle)
    assert len(told) > len(PARTS) and bundle.secrets >= len(SECRETS)
    assert {name: found for name, content in told.items() if (found := leaks(SECRETS, content))} == {}
    assert b"HELIOGRAPH_SITE__ID = sg-0042" in told["bundle:heliograph-support/config.toml"]


@pytest.mark.parametrize("part", ["events.json", "maps/mine.toml"])
def test_the_search_would_find_one(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without the sieve the same site goes red, in these parts."""
    config = careless(tmp_path)
    monkeypatch.setattr(app, "sieve", lambda _: str)
    told = everything(support.gather(config, local=tmp_path / "meters", environ=ENVIRON))
    assert leaks(SECRETS, told[f"bundle:heliograph-support/{part}"])


def test_the_configuration_alone_shows_none_even_without_the_sieve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two walls: what is not known to be harmless is not shown in the first place (but an id is)."""
    config = careless(tmp_path)
    config.write_text(re.sub(r"^id = .*CaNaRy.*$", "", config.read_text(), flags=re.M))
    monkeypatch.setattr(app, "sieve", lambda _: str)
    told = everything(support.gather(config, local=tmp_path / "meters", environ=ENVIRON))
    assert leaks(SECRETS, told["bundle:heliograph-support/config.toml"]) == []


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("[[bus]]  # the first", "[[bus]]"),
        ("[uplink.redex]", "[uplink.redex]"),
        ("# a comment with hunter2", "#"),
        ("", ""),
        ('url = "tcp://10.0.0.1:502" # hunter2', 'url = "tcp://10.0.0.1:502"'),
        ('url = "tcp://joe:hunter2@10.0.0.1"', 'url = "tcp://***@10.0.0.1"'),
        ('base_url = "https://joe:hunter2@x.example/api?key=hunter2"', 'base_url = "https://***@x.example/api?***"'),
        ("latitude = 1.352083", "latitude = 1.4"),
        ("latitude = hunter2", "latitude = ***"),
        ('report_as = { redex = "STR1", drec = "roof" }', 'report_as = { redex = "STR1", drec = "roof" }'),
        ('token = "hunter2"', "token = ***"),
        ('token = { file = "/etc/redex.token" }', 'token = { file = "/etc/redex.token" }'),
        ('token = { file = "hunter2" }', "token = { file = *** }"),
        ('token = { env = "HUNTER2" }', "token = { env = *** }"),
        ('login = { api_key = "hunter2" }', "login = ***"),
        ('token.file = "/etc/redex.token"', "token.file = ***"),
        ('file = "/etc/redex.token"', "file = ***"),
        ('"token" = "hunter2"', '"token" = ***'),
        ('uplink = { redex = { token = "hunter2" } }', "uplink = ***"),
        ('id = { token = "hunter2" }', "id = ***"),
        ('id = """', "id = ***"),
        ("hunter2", "***"),
        ('tokn = "hunter2"', "tokn = ***"),
        ('id = "a # b" # c', 'id = "a # b"'),
    ],
)
def test_a_line_of_the_configuration_is_shown_as_far_as_it_is_harmless(line: str, shown: str) -> None:
    assert support.redacted(line) == shown


def test_what_is_looked_for_is_a_secret_and_no_word_of_ours() -> None:
    text = """
        tokn = "Hunter2Hunter2"
        mapp = "eastron-sdm630"
        prod = "energy_export"
        timezon = 'Asia/Singapore'
        login = { api_key = { env = "NOT_THERE_1" }, client_id = "PastedHere9" }
        url = "tcp://joe:doe%2Fdoe@10.0.0.1"
    """
    environ = {
        "SOME_TOKEN": "Abc123Abc123",
        "KEY_STYLE": "production",
        "AUTH_SOCK": "/run/auth1234",
        "HOME": "Home12345",
    }
    assert support.found_secrets(text, environ) == {
        "Hunter2Hunter2", "NOT_THERE_1", "PastedHere9", "doe%2Fdoe", "doe/doe", "Abc123Abc123"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a token eyJhbGciOiJI.eyJleHAiOjE3.c2lnbmF0dXJl here", "a token *** here"),
        ("Authorization: Bearer 0123456789abcdef", "Authorization: Bearer ***"),
        ("a basic thing", "a basic thing"),
    ],
)
def test_what_looks_like_a_token_goes_whosesoever_it_is(text: str, shown: str) -> None:
    assert support._clean(text) == shown


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_serial_number_in_a_frame_is_masked_also_when_it_came_in_pieces(cut: int) -> None:
    frame = bytes.fromhex("01 03 06") + SERIAL.to_bytes(4, "big") + bytes.fromhex("00 70 12 34")
    clean = support._without(frame, {str(SERIAL)})
    assert len(clean) == len(frame) and SERIAL.to_bytes(4, "big") not in clean
    assert clean[:3] == frame[:3] and clean[7:] == frame[7:]

    class Asked(support._Site):
        def ask(self, question: str) -> object:
            assert question == "/api/v1/frames"
            pieces = [
                {"ago": 1.0, "sent": True, "hex": "0103fc000003"},
                {"ago": 0.9, "sent": False, "hex": frame[:cut].hex()},
            ]
            pieces.append({"ago": 0.8, "sent": False, "hex": frame[cut:].hex()})
            return {"counts": {"lan": {"requests": 1}}, "frames": {"lan": pieces}, "serials": [str(SERIAL)]}

    text = support._frames(Asked(Path(), "", None, "", Path(), Path()), set())
    said = bytes.fromhex("".join(re.findall(r"< ([0-9a-f ]+)$", text, re.M)).replace(" ", ""))
    assert said == clean


# --- the file -------------------------------------------------------------------------------------------------------


def test_the_file_is_bounded_and_the_same_texts_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "meters").mkdir()
    (tmp_path / "meters" / "huge.toml").write_text("x" * (3 * support.MOST))
    found = gathered(site(tmp_path), tmp_path)
    text = found.parts["maps/huge.toml"]
    assert len(text) < support.MOST + 100 and "characters were left out here" in text
    assert found.packed() == support.Bundle(found.site, dict(found.parts)).packed()
    with zipfile.ZipFile(io.BytesIO(found.packed())) as pack:
        assert [name.removeprefix("heliograph-support/") for name in pack.namelist()] == list(found.parts)


def test_the_verb_says_where_it_is_and_to_look_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = site(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = run("--config", str(config), "support")
    assert done.return_value == 0, done.exception
    (path,) = tmp_path.glob("heliograph-support-sg-0042-*.zip")
    assert path.stat().st_mode & 0o777 == 0o600
    assert str(path) in done.stdout and "Look through it" in done.stdout and "Nothing was sent" in done.stdout
    assert "not to be had: events.json: no store" in done.stdout
    told = json.loads(run("--config", str(config), "support", "x.zip", "--json").stdout)
    assert told["path"] == str(tmp_path / "x.zip") and told["parts"][0] == "README.txt"
    with zipfile.ZipFile(told["path"]) as pack:
        assert pack.testzip() is None
    refused = run("--config", str(config), "support", "/proc/x.zip")
    assert getattr(refused.exception, "exit_code", None) == 2
