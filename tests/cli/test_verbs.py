"""What a person on the roof is told, in text and in JSON."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from heliograph import library
from heliograph.cli import VERBS, heliograph
from heliograph.core.coverage import Coverage, Silence
from heliograph.core.delivery import Parcel, Verdict
from heliograph.core.errors import HeliographError
from heliograph.core.readings import Moment, Reading, Source
from heliograph.store import Store
from heliograph.work.close_days import close_days
from tests.fakes import RULES, START, FakeClock, a_meter

ROOT = Path(__file__).parents[2]
CONFIG = """
[site]
id = "sg-0042"
timezone = "Asia/Singapore"
data_dir = "{folder}/data"
[[bus]]
id = "rs485"
url = "serial:///dev/ttyUSB0?baudrate=9600"
[[meter]]
id = "roof"
bus = "rs485"
map = "eastron-sdm630"
rated_kw = 50
report_as = {{ redex = "STR1" }}
[uplink.redex]
base_url = "https://uat-api.redex.eco"
token = {{ file = "{folder}/token" }}
[clock]
trust = "always"
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Two closed days (the first one sent, the second refused), one held over a gap, and a doubt in between."""
    (tmp_path / "token").write_text("token")
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(folder=tmp_path))
    (tmp_path / "data").mkdir()
    clock, meter = FakeClock(), a_meter()
    store = Store.writer(tmp_path / "data")
    store.readings.begin("sg-0042", "Asia/Singapore", "boot-1", START)
    loaded = library.load("eastron-sdm630", local=None)
    store.readings.know_map(loaded.digest, loaded.map.name, loaded.text)
    store.readings.know_meter("roof", "energy_export")
    store.readings.remember_serial("roof", "23451234")
    source = Source(1, "input", 0x4A, 2, meter.map_digest)
    for hours, wh, doubt in (
        (8, 4_123_000, ""),
        (12, 7, "energy_export fell from 4123000 to 7 Wh"),
        (23.99, 4_164_237, ""),
        (47.99, 4_193_000, ""),
        (60, 4_203_000, ""),
        (100, 4_243_000, ""),
        (119.99, 4_253_000, ""),
    ):
        moment = Moment(START + timedelta(hours=hours), "boot-1", hours * 3600, True)
        words = struct.unpack(">2H", struct.pack(">f", wh / 1000))
        store.readings.add([Reading("roof", moment, wh, {"frequency": 50.0}, words, source, doubt)])
    clock.at = START + timedelta(hours=121)
    close_days([meter], store, clock, RULES)
    rows = store.outbox.candidates("platform", clock.now(), ordered=False, limit=1)
    body = (
        b'{"Devices":[{"RemoteInvId":"STR-roof","Data":[{"Timestamp":"2026-03-14","PeriodProductionInKWh":"41.237"}]}]}'
    )
    parcel = Parcel("/public/v2/generation-datas/batches", body, tuple(rows))
    store.outbox.claim("platform", parcel, clock.now(), clock.now())
    store.outbox.settle([(rows[0].id, Verdict("accepted", "201", process_id="20745"), clock.now())], clock.now())
    rows = store.outbox.candidates("platform", clock.now(), ordered=True, limit=1)
    store.outbox.claim("platform", Parcel("/x", b"{}", tuple(rows)), clock.now(), clock.now())
    refused = Verdict("rejected", "R422", "RemoteInvId is unknown", remedy="Register the inverter.")
    store.outbox.settle([(rows[0].id, refused, clock.now())], clock.now())
    store.close()
    return config


Ask = Callable[..., Result]


@pytest.fixture
def ask(site: Path) -> Ask:
    def run(*words: str) -> Result:
        return CliRunner().invoke(heliograph, ["--config", str(site), *words], standalone_mode=False)

    return run


def code(result: Result) -> int | None:
    if isinstance(result.exception, HeliographError):
        return result.exception.exit_code
    if result.exception is not None:
        raise result.exception
    value: int | None = result.return_value
    return value


def test_days_lists_closed_and_held_days_with_reasons(ask: Ask) -> None:
    found = ask("days", "--from", "2026-03-14", "--to", "2026-03-19")
    assert code(found) == 1
    assert re.search(r"roof +2026-03-14 +closed +41\.237 +- +41\.237", found.stdout)
    assert re.search(r"roof +2026-03-16 +held +- +- +- +-  *no reading for 40\.0 h over midnight", found.stdout)
    rows = json.loads(ask("days", "roof", "--from", "2026-03-14", "--to", "2026-03-19", "--json").stdout)
    assert [(row["day"][-2:], row["state"], row["period_wh"]) for row in rows] == [
        ("14", "closed", 41_237),
        ("15", "closed", 28_763),
        ("16", "held", None),
        ("17", "held", None),
        ("18", "held", None),
    ]


def test_explain_walks_back_to_the_words(ask: Ask) -> None:
    found = ask("explain", "roof", "2026-03-14")
    assert code(found) == 0
    for words in (
        "41.237 kWh = 4164.237 - 4123.000",
        "meter serial 23451234",
        "first reading of this meter",
        r"raw words +4582 21E5   unit 1, input 0x004A\+2 \(Modbus function 4\)",
        r"decoded +4164\.237 kWh   float32 ABCD: exactly 4164\.2",
        "excluded 04:00:00 UTC, counter 0.007 kWh, words 3BE5 6042: energy_export fell",
        "platform as STR-roof: accepted",
        '"RemoteInvId":"STR-roof",',
        "PeriodProductionInKWh 41.237 = 41,237 Wh: the day's figure",
        "process 20745",
    ):
        assert re.search(words, found.stdout) or words in found.stdout, words
    told = json.loads(ask("explain", "roof", "2026-03-14", "--json").stdout)
    assert told["period_wh"] == told["closing"]["index_wh"] - told["opening"]["index_wh"] == 41_237
    assert told["closing"]["before"]["words"] == ["4582", "21E5"]
    held = ask("explain", "roof", "2026-03-17")
    assert code(held) == 1 and "heliograph release roof 2026-03-16..2026-03-18" in held.stdout


def test_backlog_says_why_and_what_to_do(ask: Ask) -> None:
    found = ask("backlog")
    assert code(found) == 1
    assert "RemoteInvId is unknown" in found.stdout and "Register the inverter." in found.stdout
    rows = json.loads(ask("backlog", "--json").stdout)
    assert [row["state"] for row in rows] == ["accepted", "rejected"]


def test_status_of_a_gateway_that_does_not_run(ask: Ask) -> None:
    found = ask("status")
    assert code(found) == 1
    assert "NOT running" in found.stdout and "3 days are held" in found.stdout
    told = json.loads(ask("status", "--json").stdout)
    assert told["meters"][0]["total_wh"] == 4_253_000 - 4_123_000


def test_plan_shows_requests_bytes_and_time(ask: Ask) -> None:
    found = ask("plan", "roof", "--json")
    requests = json.loads(found.stdout)[0]["requests"]
    assert sum(len(request["quantities"]) for request in requests) == 20
    assert all(request["bytes"] == 13 + 2 * request["count"] for request in requests)
    assert "ms a round" in ask("plan").stdout


def test_check_names_what_will_be_done(ask: Ask) -> None:
    found = ask("check")
    assert code(found) == 0
    assert "roof: unit 1 on rs485, map eastron-sdm630 (documented), energy_export is production" in found.stdout
    assert json.loads(ask("check", "--json").stdout)["meters"][0]["reports"] == {"redex": "STR1"}
    assert json.loads(ask("check", "--schema").stdout)["title"] == "Heliograph configuration"


def test_status_asks_a_daemon_of_before_an_update_too(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new files are there before the service is started anew."""
    seen = json.loads(ask("status", "--json").stdout)
    older = {name: value for name, value in seen.items() if name not in ("outputs", "machine")}
    monkeypatch.setattr("heliograph.control.ask", lambda *_args, **_more: older)
    assert code(ask("status")) == 1


def test_read_tells_where_the_device_says_another_ratio(site: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write_text(site.read_text().replace("rated_kw = 50", "rated_kw = 50\nfactors = { ct_ratio = 40 }"))
    for said, differs in ((39.0, True), (40.0, False)):
        answer = {"at": "2026-03-14T12:00:00Z", "values": {"energy_export": 4_164_237, "ct_ratio": said}}
        monkeypatch.setattr("heliograph.control.ask", lambda *_args, answer=answer, **_more: answer)
        found = ask("read", "roof")
        assert code(found) == 0, found.output
        words = "ct_ratio: the device says 39, factors in the configuration says 40, which counts"
        assert (words in found.stdout) is differs
        assert bool(json.loads(ask("read", "roof", "--json").stdout)["notes"]) is differs


def test_reading_a_port_that_is_not_there_says_so(ask: Ask) -> None:
    found = ask("read", "roof")
    assert code(found) == 69
    assert isinstance(found.exception, HeliographError)
    assert "/dev/ttyUSB0" in found.exception.message and found.exception.hint


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["read", "rof"], "Did you mean roof"),
        (["explain", "roof", "14.3."], "2026-03-14"),
        (["explain", "roo", "today"], "roof"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_one(ask: Ask, words: Sequence[str], says: str) -> None:
    found = ask(*words)
    assert isinstance(found.exception, HeliographError)
    assert says in found.exception.hint


def test_a_misspelt_verb_is_answered_with_the_nearest() -> None:
    found = CliRunner().invoke(heliograph, ["stauts"])
    assert found.exit_code == 2 and "Did you mean status?" in found.output


def test_version_tells_what_runs() -> None:
    told = json.loads(CliRunner().invoke(heliograph, ["version", "--json"]).output)
    assert re.fullmatch(r"\d+\.\d+\.\d+", told["heliograph"])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_exists_has_help_and_stands_in_the_readme(verb: str) -> None:
    found = CliRunner().invoke(heliograph, [verb, "--help"])
    assert found.exit_code == 0 and "Usage:" in found.output
    assert re.search(rf"(?m)^\| `{verb}\b", (ROOT / "README.md").read_text(encoding="utf-8"))


def test_the_fakes_clock_is_aware() -> None:
    assert FakeClock().now().tzinfo is UTC and isinstance(START, datetime) and START.date() == date(2026, 3, 13)


def test_a_person_need_not_see_the_secrets_of_the_service(
    site: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    text = site.read_text()
    site.write_text(re.sub(r"token = .*", 'token = { credential = "redex.token" }', text))
    assert code(ask("status")) == 1 and code(ask("days")) == 0 and code(ask("check")) == 0
    assert code(ask("run")) == 78
    site.write_text(re.sub(r"token = .*", 'token = { file = "/nowhere/token" }', text))
    assert code(ask("status")) == 1 and code(ask("check")) == 78


def test_a_swap_is_recorded_only_when_somebody_says_so(ask: Ask) -> None:
    words = ("swap", "roof", "--old-index", "4253.5", "--new-index", "0.1", "--new-serial", "999")
    asked = ask(*words)
    assert isinstance(asked.exception, HeliographError) and "--yes" in asked.exception.hint
    assert "4253.500 -> 0.100 kWh, serial 23451234 -> 999" in asked.stderr
    done = ask(*words, "--yes")
    assert code(done) == 0 and "Recorded" in done.stdout
    assert code(ask("swap", "roof", "--old-index", "4.1", "--new-index", "0", "--new-serial", "1", "--yes")) == 2


def test_released_days_are_no_longer_held(ask: Ask) -> None:
    done = ask("release", "roof", "2026-03-16..2026-03-18", "--split", "time", "--yes", "--json")
    assert code(done) == 0
    periods = [day["period_wh"] for day in json.loads(done.stdout)["days"]]
    assert sum(periods) == 60_000 and len(periods) == 3
    assert code(ask("days", "--from", "2026-03-14", "--to", "2026-03-19")) == 0
    assert isinstance(ask("release", "roof", "2026-03-16", "--split", "time", "--yes").exception, HeliographError)


def test_a_split_along_daylight_needs_a_position(site: Path, ask: Ask) -> None:
    words = ("release", "roof", "2026-03-16..2026-03-18", "--split", "daylight")
    refused = ask(*words, "--yes")
    assert code(refused) == 2 and isinstance(refused.exception, HeliographError)
    assert "position" in refused.exception.message and "site.latitude" in refused.exception.hint
    site.write_text(site.read_text().replace("[[bus]]", "latitude = 1.35\nlongitude = 103.82\n[[bus]]"))
    asked = ask(*words)
    assert "an estimated split (daylight)" in asked.stderr
    done = ask(*words, "--yes", "--json")
    assert code(done) == 0
    days = json.loads(done.stdout)["days"]
    # 40 kWh from noon of the first day to four in the morning of the third: the sun is highest
    # at ten past one, so two thirds of a day of light, a whole one, and none.
    assert [day["how"] for day in days] == ["daylight", "daylight", "daylight"]
    assert sum(day["period_wh"] for day in days) == 60_000 and sum(day["estimated_wh"] for day in days) == 40_000
    assert [day["estimated_wh"] for day in days] == pytest.approx([15_950, 24_050, 0], abs=200)
    rows = json.loads(ask("days", "roof", "--from", "2026-03-16", "--to", "2026-03-18", "--json").stdout)
    assert [row["estimated_wh"] for row in rows] == [day["estimated_wh"] for day in days]
    assert all("clear sky" in row["reason"] for row in rows)
    shown = ask("days", "roof", "--from", "2026-03-16", "--to", "2026-03-18").stdout
    share = rows[0]["estimated_wh"] / 1000
    assert re.search(rf"2026-03-16 +closed +\d+\.\d+ +{share:.3f} ", shown)
    told = ask("explain", "roof", "2026-03-16").stdout
    assert f"({share:.3f} kWh of it an estimated split)" in told


def test_a_wrong_seam_is_corrected_by_its_number(ask: Ask) -> None:
    swap = ("swap", "roof", "--old-index", "41360.5", "--new-index", "0.1", "--new-serial", "999", "--yes")
    assert "Recorded as seam 1" in ask(*swap).stdout
    words = ("swap", "roof", "--corrects", "1", "--old-index", "41361", "--new-index", "0.1")
    assert code(ask(*words, "--yes")) == 2  # no reason given
    asked = ask(*words, "--note", "misread")
    assert isinstance(asked.exception, HeliographError) and "--yes" in asked.exception.hint
    assert "instead of what seam 1 says, +0.500 kWh" in asked.stderr
    done = ask(*words, "--note", "misread", "--yes", "--json")
    assert code(done) == 0
    told = json.loads(done.stdout)
    assert (told["id"], told["moves_wh"]) == (2, 500)
    assert "correction" in ask("status").stdout
    again = ask(*words, "--note", "misread", "--yes")
    assert isinstance(again.exception, HeliographError) and "already" in again.exception.message
    assert code(ask(*words, "--note", "misread", "--new-serial", "7", "--yes")) == 2


def test_days_and_explain_say_how_well_a_day_was_read(site: Path, ask: Ask) -> None:
    assert json.loads(ask("days", "--from", "2026-03-14", "--to", "2026-03-14", "--json").stdout)[0]["coverage"] is None
    gap = Silence(START + timedelta(hours=9), START + timedelta(hours=11.5), "bus")
    seen = Coverage(
        "roof",
        date(2026, 3, 15),
        timedelta(seconds=10),
        {"good": 7700, "timeout": 900, "garbled": 3},
        START + timedelta(hours=24),
        START + timedelta(hours=47.9),
        gaps=(replace(gap, start=gap.start + timedelta(days=1), end=gap.end + timedelta(days=1)),),
    )
    store = Store.writer(site.parent / "data")
    store.readings.begin("sg-0042", "Asia/Singapore", "boot-1", START)
    store.readings.add([], [seen])
    store.close()
    row = json.loads(ask("days", "--from", "2026-03-15", "--to", "2026-03-15", "--json").stdout)[0]
    told = row["coverage"]
    assert (told["expected"], told["good"], told["not_asked"]) == (8640, 7700, 37)
    assert told["bad"] == {"timeout": 900, "garbled": 3} and told["longest_gap_s"] == 9000
    assert told["gaps"][0]["cause"] == "bus"
    assert "first" in told and told["first"].endswith("Z")
    shown = ask("days", "--from", "2026-03-15", "--to", "2026-03-15").stdout
    assert "89.1 %" in shown and "nothing read for 2.5 h: no usable answer on the bus" in shown
    lines = ask("explain", "roof", "2026-03-15").stdout
    assert "polls: 8640 expected, 7700 good, 900 timeout, 3 garbled, 37 not asked" in lines
    assert "nothing from 01:00:00 to 03:30:00 UTC: no usable answer on the bus" in lines


def test_a_refused_run_leaves_the_process_as_it_was(site: Path, ask: Ask) -> None:
    site.write_text(site.read_text().replace("/token", "/nowhere"))
    before = os.umask(0o022)
    try:
        assert code(ask("run")) == 78
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
