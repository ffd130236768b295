"""What `explain` says about every delivered day of a rehearsed site, reckoned again by somebody else.

The words are decoded here by hand, in fractions, from what IEEE 754 says; nothing of the product's decoding, days or
bodies is used. HELIOGRAPH_DAYS=14 pytest tests/e2e/test_explained.py rehearses as many days as the demo can.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from heliograph import app
from heliograph.cli import heliograph
from heliograph.clock import RehearsalClock
from heliograph.core import daily
from heliograph.daemon import Daemon
from heliograph.rehearsal import demo

DAYS = int(os.environ.get("HELIOGRAPH_DAYS", "3"))


def shown_wh(words: Sequence[str]) -> int:
    """Whole Wh of a float32 in kWh: the decimal with the fewest digits that rounds to it, floored."""
    bits = int("".join(words), 16)
    exponent, fraction = bits >> 23 & 0xFF, bits & 0x7FFFFF
    assert bits >> 31 == 0 and 0 < exponent < 255, "an energy counter is a positive, normal number"
    step = Fraction(2) ** (exponent - 150)
    exact = (0x800000 + fraction) * step
    for digits in range(1, 10):
        power = Fraction(10) ** (len(str(int(exact))) - digits)
        near = round(exact / power) * power
        # Half a step away at most, where the nearest float32 is this one; at the lowest mantissa the gap below is half.
        below = step / 4 if fraction == 0 else step / 2
        if exact - below < near < exact + step / 2:
            return int(near * 1000 // 1)
    raise AssertionError("nine digits always identify a float32")


@pytest.mark.parametrize(
    ("words", "wh"),
    [
        (("0000", "0000"), None),
        (("3F80", "0000"), 1_000),
        (("3DCC", "CCCD"), 100),
        (("4721", "0EB3"), 41_230_700),
        (("47F1", "2064"), 123_456_780),
        (("45EA", "C2B8"), 7_512_340),
    ],
)
def test_the_decoding_by_hand_gives_what_displays_show(words: Sequence[str], wh: int | None) -> None:
    if wh is None:
        with pytest.raises(AssertionError):
            shown_wh(words)
    else:
        assert shown_wh(words) == wh


def test_every_delivered_day_is_what_its_words_its_request_and_the_platform_say(tmp_path: Path) -> None:
    held = _rehearsed(tmp_path)
    store = sqlite3.connect(f"file:{tmp_path / 'data' / 'heliograph.db'}?mode=ro", uri=True)
    explained = 0
    for meter, (remote, *_) in demo.METERS.items():
        assert len(held[meter]) >= DAYS
        total = 0
        for day, platform_wh in held[meter].items():
            told = _explain(tmp_path, meter, day)
            wrong = disagreements(told, total, _sent(store, told, remote), platform_wh)
            assert wrong == [], f"{meter} {day}: {wrong}"
            total += told["period_wh"]
            explained += 1
            if explained == 1:
                _would_be_noticed(told, _sent(store, told, remote), platform_wh)
    store.close()
    assert explained >= DAYS * len(demo.METERS)
    _proven(tmp_path, held)


def _proven(folder: Path, held: Mapping[str, Mapping[date, int]]) -> None:
    """The evidence of the same days, taken to a computer that knows nothing of the site."""
    days = sorted(day for meter in held.values() for day in meter)
    words = ["export", str(folder / "site.pack"), "--from", str(days[0]), "--to", str(days[-1])]
    done = CliRunner().invoke(heliograph, ["--config", str(folder / "config.toml"), *words], standalone_mode=False)
    assert done.exception is None, repr(done.exception)
    found = CliRunner().invoke(heliograph, ["verify", str(folder / "site.pack"), "--json"], standalone_mode=False)
    assert found.exception is None, repr(found.exception)
    told = json.loads(found.stdout)
    assert told["sound"] and told["findings"] == [] and told["checkpoints"] > 0
    for meter, delivered in held.items():
        # The platform may not have confirmed the last day yet, which is closed all the same.
        proven = told["meters"][meter]
        assert proven["days"] >= len(delivered) and proven["wh"] >= sum(delivered.values())
        if proven["days"] == len(delivered):
            assert proven["wh"] == sum(delivered.values()) and proven["confirmed"] == {"redex": len(delivered)}


def disagreements(told: Mapping[str, Any], before: int, sent: Mapping[str, str], platform_wh: int) -> list[str]:
    """What the explanation of a day says against what its own words, the stored request and the platform say."""
    found = []
    borders = {}
    for end in ("opening", "closing"):
        border = told[end]
        borders[end] = _border_wh(border)
        if borders[end] != border["index_wh"]:
            found.append(f"{end}: the words say {borders[end]}, the border {border['index_wh']}")
    period = borders["closing"] - borders["opening"]
    for what, wh in (
        ("the figure", told["period_wh"]),
        ("the platform", platform_wh),
        ("the request", _wh(sent["PeriodProductionInKWh"])),
    ):
        if wh != period:
            found.append(f"{what} says {wh} Wh, the words {period}")
    for what, wh in (
        ("the running total", told["total_wh"]),
        ("the request's total", _wh(sent["AccumulatedEnergyInKWh"])),
    ):
        if wh != before + period:
            found.append(f"{what} is {wh} Wh, the days so far {before + period}")
    if not told["checks"] or not all(check["ok"] for check in told["checks"]):
        found.append(f"its own checks: {told['checks']}")
    return found


def _border_wh(border: Mapping[str, Any]) -> int:
    """From the words of one reading, or of two where a busy machine left a gap over midnight."""

    def counter(reading: Mapping[str, Any]) -> int:
        assert reading["address"] == 0x4A and reading["count"] == 2 and reading["function_code"] == 4
        return shown_wh(reading["words"])

    before = counter(border["before"])
    if border["after"] is None:
        assert border["method"] in ("start", "read")
        return before
    assert border["method"] in ("still", "split")
    first, at, last = (
        datetime.fromisoformat(text) for text in (border["before"]["at"], border["at"], border["after"]["at"])
    )
    assert first < at < last
    return before + (counter(border["after"]) - before) * (at - first) // (last - first)


def _would_be_noticed(told: dict[str, Any], sent: Mapping[str, str], platform_wh: int) -> None:
    """The comparison can fail: one bit of a word, one Wh of a figure, of the request, of the platform."""
    changed = json.loads(json.dumps(told))
    first, second = changed["closing"]["before"]["words"]
    changed["closing"]["before"]["words"] = [first, f"{int(second, 16) ^ 0x40:04X}"]
    assert disagreements(changed, 0, sent, platform_wh)
    assert disagreements({**told, "period_wh": told["period_wh"] + 1}, 0, sent, platform_wh)
    assert disagreements(told, 0, {**sent, "PeriodProductionInKWh": "0.001"}, platform_wh)
    assert disagreements(told, 0, sent, platform_wh - 1)
    assert disagreements(told, 1, sent, platform_wh)


def _wh(text: str) -> int:
    wh = Fraction(text) * 1000
    assert wh.denominator == 1
    return int(wh)


def _sent(store: sqlite3.Connection, told: Mapping[str, Any], remote: str) -> dict[str, str]:
    """The record of the day in the request that explain names, found in the table of requests by its digest."""
    (submission,) = told["submissions"]
    assert submission["state"] == "confirmed" and submission["remote_id"] == remote
    bodies = [zlib.decompress(body) for (body,) in store.execute("SELECT body FROM claim")]
    (body,) = {body for body in bodies if hashlib.sha256(body).hexdigest() == submission["body_sha256"]}
    assert submission["body_bytes"] == len(body)
    assert submission["excerpt"].strip("…") in body.decode()
    records: list[dict[str, str]] = [
        record
        for device in json.loads(body)["Devices"]
        for record in device["Data"]
        if device["RemoteInvId"] == remote and record["Timestamp"] == told["day"]
    ]
    (record,) = records
    assert json.dumps(record, separators=(",", ":")) in submission["excerpt"]
    assert {figure["key"]: figure["sent"] for figure in submission["figures"]} == {
        key: text for key, text in record.items() if key != "Timestamp"
    }
    return record


def _explain(folder: Path, meter: str, day: date) -> dict[str, Any]:
    words = ["explain", meter, str(day), "--json", "--data-dir", str(folder / "data")]
    done = CliRunner().invoke(heliograph, words, standalone_mode=False)
    assert done.exception is None and done.return_value == 0, done.output
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _rehearsed(folder: Path) -> dict[str, dict[date, int]]:
    """The demo with its outage and late answers, its store kept; what the platform holds, by meter and day."""
    start = daily.start_of(demo.FIRST_DAY, demo.ZONE) + timedelta(hours=3)
    last = demo.FIRST_DAY + timedelta(days=DAYS - 1)
    away = (daily.end_of(demo.FIRST_DAY, demo.ZONE) - timedelta(hours=2), timedelta(hours=28))
    clock = RehearsalClock(start, demo.RATE)
    deadline = time.monotonic() + 60 + 15 * DAYS
    with demo._stage(clock) as (_, line, server, platform):
        site = app.load(demo._configuration(folder, line, server, platform), clock)
        with site.writer() as store:
            daemon = Daemon(site, store)
            daemon.start()
            try:
                while not demo._finished(store, last, clock.now()):
                    platform.away = away[0] <= clock.now() < away[0] + away[1]
                    assert time.monotonic() < deadline, f"not delivered by {clock.now()}"
                    time.sleep(0.05)  # the daemon runs in its own threads meanwhile
            finally:
                daemon.stop()
            held = {
                meter: {
                    day: wh
                    for day, wh in platform.stored_wh("redex", remote).items()
                    if not isinstance(day, datetime) and day <= last
                }
                for meter, (remote, *_) in demo.METERS.items()
            }
        assert [str(one) for one in platform.violations] == []
    return held
