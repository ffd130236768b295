"""An evidence pack: made from a real store, signed by a real key, edited in every way, checked from its bytes.

HELIOGRAPH_EDITS=10000 pytest tests/work/test_export.py tries as many edits; HELIOGRAPH_SEED repeats a run.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import struct
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from heliograph import library, seal
from heliograph.core import audit, chain
from heliograph.core.audit import Audit, Report
from heliograph.core.chain import canonical, pack_message
from heliograph.core.daylight import Position
from heliograph.core.decode import shortest_float32
from heliograph.core.errors import UsageError
from heliograph.core.ledger import Seam
from heliograph.core.readings import Moment, Reading, Source
from heliograph.core.registers import MeterMap
from heliograph.core.site import Report as ReportTo
from heliograph.store import Store
from heliograph.work import close_days as closing
from heliograph.work.amend import record_seam, release
from heliograph.work.attest import attest
from heliograph.work.decide import decide
from heliograph.work.deliver import Pace, deliver
from heliograph.work.export import pack
from tests.fakes import RULES, START, FakeClock, FakeUplink, a_meter

EDITS = int(os.environ.get("HELIOGRAPH_EDITS", "1000"))
MAP = library.load("eastron-sdm630", local=None)
METERS = (a_meter("roof", unit=1), a_meter("barn", unit=2))
DAYS = 12


def words_of(kwh: float) -> tuple[int, int]:
    high, low = struct.unpack(">HH", struct.pack(">f", kwh))
    return high, low


def read(
    store: Store, clock: FakeClock, meter: str, unit: int, kwh: float, *, swap: bool = False, doubt: str = ""
) -> None:
    words = words_of(kwh)
    index = int(shortest_float32(struct.unpack(">f", struct.pack(">HH", *words))[0]) * 1000)
    moment = Moment(clock.now(), clock.boot_id, clock.since_boot(), True)
    source = Source(unit, "input", 0x4A, 2, MAP.digest)
    words = words[::-1] if swap else words
    store.readings.add([Reading(meter, moment, index, {"frequency": 50.0}, words, source, doubt)])


def a_site(folder: Path) -> Store:
    """Twelve days of two meters: a swap, a day split without asking, two held and released, everything delivered."""
    clock, store, uplink = FakeClock(), Store.writer(folder), FakeUplink(most=7)
    store.readings.begin("saved", "Asia/Singapore", clock.boot_id, START)
    store.readings.know_map(MAP.digest, MAP.map.name, MAP.text)
    for meter in METERS:
        store.readings.know_meter(meter.id, meter.production)
    store.chain.configure({"meters": {one.id: CONFIGURED for one in METERS}, "position": ["1.35", "103.8"]}, START)
    kwh = {"roof": 41_230.7, "barn": 712.25}
    for hour in range(DAYS * 24 + 1):
        for unit, meter in enumerate(METERS, 1):
            away = (meter.id == "roof" and 130 < hour < 170) or (meter.id == "barn" and hour == 96)
            if meter.id == "barn" and hour == 60:
                old, kwh["barn"] = kwh["barn"], 3.5
                wh = int(round(old, 3) * 1000)
                record_seam(meter, Seam("barn", clock.now(), "swap", wh, 3500, new_serial="2"), store, clock.now())
            if not away:
                read(store, clock, meter.id, unit, kwh[meter.id])
            kwh[meter.id] += 2.37 if 6 < hour % 24 < 19 else 0.004
        clock.leap(hours=1)
        if hour % 6 == 0:
            closing.close_days(SLOW, store, clock, RULES)
            attest("saved", store, clock, lambda message: seal.sign(folder / seal.FILE, message))
    closing.close_days(SLOW, store, clock, RULES)
    held = sorted(one.day for one in store.days.held("roof"))
    release(SLOW[0], held[0], held[-1], "daylight", store, clock.now(), PLACED)
    while any(set(states) - {"confirmed"} for states in store.outbox.counts().values()):
        deliver(uplink, store, clock, Pace(clock), lambda: 0.5)
        clock.leap(minutes=10)
    attest("saved", store, clock, lambda message: seal.sign(folder / seal.FILE, message))
    return store


# Read once an hour, which still counts as continuous.
SLOW = tuple(replace(meter, every=timedelta(hours=1), store_every=timedelta(hours=1)) for meter in METERS)
PLACED = replace(RULES, position=Position(1.35, 103.8))
CONFIGURED: dict[str, object] = {"production": "energy_export", "order": None, "factors": {}, "map": MAP.digest}


def exported(folder: Path, store: Store, **chosen: int) -> list[bytes]:
    """The pack of some days (all of them by default), as lines."""
    days = sorted(day.day for day in store.days.all())
    first, last = days[chosen.get("first", 0)], days[chosen.get("last", -1)]
    made = pack(store, "saved", first, last, [meter.id for meter in METERS], START + timedelta(days=DAYS))
    head = next(made)
    assert isinstance(head, dict)
    lines = [canonical(head) + b"\n", *(one + b"\n" for one in made if isinstance(one, bytes))]
    return [*lines, manifest(lines, folder / seal.FILE)]


def manifest(lines: list[bytes], key: Path) -> bytes:
    head = {name: value for name, value in json.loads(lines[0]).items() if name != "kind"}
    content = {**head, "lines": len(lines), "sha256": hashlib.sha256(b"".join(lines)).hexdigest()}
    public, signature = seal.sign(key, pack_message(content))
    return canonical({**content, "kind": "manifest", "key": public.hex(), "signature": signature.hex()}) + b"\n"


def map_of(digest: str, texts: Mapping[str, tuple[str, str]]) -> MeterMap | None:
    return MAP.map if digest == MAP.digest and texts.get(digest, ("", ""))[1] == MAP.text else None


def audited(lines: list[bytes], key: bytes | None = None) -> Report:
    one = Audit(seal.verify, map_of, key=key)
    for line in b"".join(lines).splitlines(keepends=True):
        one.feed(line)
    return one.finish()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store, list[bytes]]:
    folder = tmp_path_factory.mktemp("site")
    store = a_site(folder)
    return folder, store, exported(folder, store)


Made = tuple[Path, Store, list[bytes]]


def test_an_untouched_pack_is_sound_and_says_what_was_closed_and_confirmed(made: Made) -> None:
    _, store, lines = made
    report = audited(lines)
    assert [str(finding) for finding in report.findings] == []
    for meter in METERS:
        days = store.days.all(meter.id)
        told = report.meters[meter.id]
        assert (told.days, told.wh) == (len(days), sum(day.period_wh for day in days))
        assert told.estimated == sum(day.estimated for day in days)
        assert told.confirmed == {"platform": len(days)} and told.held == 0
    assert report.checkpoints >= DAYS - 1 and report.withheld == 0 and report.decoded > 2 * DAYS
    assert store.seams.all("barn") and report.meters["roof"].estimated > 0


def test_some_days_alone_are_sound_too(made: Made) -> None:
    folder, store, lines = made
    some = exported(folder, store, first=8, last=12)
    report = audited(some)
    assert [str(finding) for finding in report.findings] == []
    assert 0 < report.withheld < report.entries and len(b"".join(some)) < len(b"".join(lines))


def test_what_a_person_decided_is_in_the_pack_of_its_days(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made[0], tmp_path / "copy")
    store = Store.writer(tmp_path / "copy")
    meter, now = SLOW[0], START + timedelta(days=DAYS)
    store.outbox.queue(meter.id, ReportTo("other", "R1"), now)  # days that wait, at a platform that is new
    days = [one.day for one in store.days.all(meter.id)]
    for what, day in (("set-aside", days[3]), ("retry", days[3]), ("set-aside", days[9])):
        wish = {"first": str(day), "last": str(day), "uplink": "other", "because": "as agreed", "dry": False}
        decide(replace(meter, reports=(ReportTo("other", "R1"),)), what, wish, store, now)
    for first, last, shown in ((0, -1, 3), (5, 8, 2), (10, 14, 0)):  # two meters a day
        lines = exported(tmp_path / "copy", store, first=first, last=last)
        report = audited(lines)
        assert [str(finding) for finding in report.findings] == []
        assert sum(b'"kind":"decision"' in line for line in lines) == shown
    lines = exported(tmp_path / "copy", store)
    forged = [line.replace(b"as agreed", b"as forged") for line in lines]
    assert audited(forged).findings
    store.close()


def edited(lines: list[bytes], chance: random.Random) -> tuple[str, list[bytes]]:
    """One edit, as a person or a bad card would make it."""
    what = chance.choice(("flip", "digit", "drop", "double", "swap", "forge", "cut", "cut inside"))
    result, at = list(lines), chance.randrange(len(lines))
    match what:
        case "flip":
            line = bytearray(result[at])
            place = chance.randrange(len(line) - 1)
            line[place] ^= 1 << chance.randrange(7)
            result[at] = bytes(line)
        case "digit":
            places = [
                (row, column) for row, line in enumerate(lines) for column, byte in enumerate(line) if 48 <= byte < 58
            ]
            row, column = chance.choice(places)
            other = chance.choice([byte for byte in b"0123456789" if byte != lines[row][column]])
            result[row] = lines[row][:column] + bytes([other]) + lines[row][column + 1 :]
        case "drop":
            del result[at]
        case "double":
            result.insert(chance.randrange(len(lines)), lines[at])
        case "swap":
            other_at = chance.choice([number for number in range(len(lines)) if number != at])
            result[at], result[other_at] = result[other_at], result[at]
        case "forge":
            result.insert(at, canonical({"kind": "map", "digest": "0" * 64, "name": "x", "text": ""}) + b"\n")
        case "cut":
            del result[at:]
        case _:
            result[at:] = [lines[at][: chance.randrange(len(lines[at]) - 1)]]
    return f"{what} at line {at + 1}", result


def test_every_edit_is_found(made: Made) -> None:
    seed = int(os.environ.get("HELIOGRAPH_SEED", random.randrange(1_000_000)))
    print(f"seed {seed}, {EDITS} edits")
    chance = random.Random(seed)
    for number in range(EDITS):
        what, lines = edited(made[2], chance)
        assert lines != made[2] and not audited(lines).sound, f"seed {seed}, edit {number}: {what}"


def test_an_edit_is_found_where_it_was_made_even_by_whoever_signs_anew(made: Made, tmp_path: Path) -> None:
    """Links, sums and words are checks of their own: a fresh manifest of a forger does not silence them."""
    seed = int(os.environ.get("HELIOGRAPH_SEED", random.randrange(1_000_000)))
    print(f"seed {seed}")
    chance, (_, _, lines) = random.Random(seed), made
    rows = [number for number, line in enumerate(lines) if b'"kind":"day"' in line]
    for _ in range(30):
        row = chance.choice(rows)
        body = json.loads(lines[row])["body"]
        body["period_wh"] += chance.choice((-1, 1, 1000))
        forged = [*lines[:row], _entry(lines[row], body), *lines[row + 1 : -1]]
        found = audited([*forged, manifest(forged, tmp_path / seal.FILE)]).findings
        assert {finding.line for finding in found} >= {row + 1}, (seed, row)


def _entry(line: bytes, body: dict[str, object], hash: bytes | None = None) -> bytes:
    content = json.loads(line)
    told = hash.hex() if hash else content["hash"]
    return b'{"body":' + canonical(body) + f',"hash":"{told}","seq":{content["seq"]}}}\n'.encode()


def rehashed(lines: list[bytes], change: int) -> list[bytes]:
    """A forger who has no key, but links the whole chain anew behind a day that he made larger."""
    result, previous, changed = [], chain.GENESIS, False
    for line in lines[:-1]:
        content = json.loads(line)
        if "seq" not in content or "kind" in content:
            result.append(line)
            continue
        body = content["body"]
        if body["kind"] == "day" and body["meter"] == "roof" and not changed:
            changed = True
            body["period_wh"] += change
        previous = chain.link(previous, chain.digest(canonical(body)))
        result.append(_entry(line, body, previous))
    head = json.loads(result[0]) | {"head": previous.hex()}
    return [canonical(head) + b"\n", *result[1:]]


def test_a_chain_linked_anew_by_a_forger_fails_at_its_checkpoints_and_sums(made: Made, tmp_path: Path) -> None:
    folder, _, lines = made
    forged = rehashed(lines, 1000)
    texts = [str(one) for one in audited([*forged, manifest(forged, tmp_path / seal.FILE)]).findings]
    assert any("is not what the counter moved" in text for text in texts)
    assert any("the checkpoint is about" in text for text in texts)
    # Without a change the same way of linking gives the same chain: what is found is the change.
    same = rehashed(lines, 0)
    assert audited([*same, manifest(same, folder / seal.FILE)]).sound


def test_another_devices_key_is_seen(made: Made, tmp_path: Path) -> None:
    folder, _, lines = made
    bare = [line for line in lines[:-1] if b'"kind":"checkpoint"' not in line]
    other = [*bare, manifest(bare, tmp_path / seal.FILE)]
    assert audited(other).sound  # nothing inside can tell: only who knows the key can
    key = seal.sign(folder / seal.FILE, b"").key
    assert any("not by the expected" in str(one) for one in audited(other, key).findings)
    assert audited(lines, key).sound
    resigned = [*lines[:-1], manifest(lines[:-1], tmp_path / seal.FILE)]
    assert any("another key signed here" in str(one) for one in audited(resigned).findings)


def test_words_are_decoded_anew(made: Made) -> None:
    """With words and index at odds the links may hold: whoever wrote the entry wrote it wrong."""
    folder, _, lines = made
    wrong = [line.replace(b'"words":"', b'"words":"4', 1) if b'"kind":"day"' in line else line for line in lines[:-1]]
    texts = [str(one) for one in audited([*wrong, manifest(wrong, folder / seal.FILE)]).findings]
    assert any("the words" in text for text in texts)


def test_nothing_closed_is_nothing_to_export(made: Made) -> None:
    _, store, _ = made
    day = store.days.all()[-1].day + timedelta(days=400)
    with pytest.raises(UsageError, match="nothing was closed"):
        next(pack(store, "saved", day, day, ["roof"], START))


def test_a_device_key_stays_the_same_and_is_nobody_elses(tmp_path: Path) -> None:
    first, second = seal.sign(tmp_path / seal.FILE, b"a"), seal.sign(tmp_path / seal.FILE, b"a")
    assert first == second and seal.verify(first.key, b"a", first.signature)
    assert not seal.verify(first.key, b"b", first.signature)
    assert (tmp_path / seal.FILE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [seal.FILE]


def test_an_edited_date_does_not_keep_the_auditor_for_years(made: Made) -> None:
    """Where a gap was split along daylight, its light is reckoned anew: not that of seven thousand years."""
    folder, _, lines = made
    row = next(number for number, line in enumerate(lines) if b'"method":"daylight"' in line and b'"after":{"' in line)
    wrong = [*lines[:row], re.sub(rb'("after":\{[^{}]*"at":")2', rb"\g<1>9", lines[row]), *lines[row + 1 : -1]]
    assert wrong[row] != lines[row]
    texts = [str(one) for one in audited([*wrong, manifest(wrong, folder / seal.FILE)]).findings]
    assert any("does not follow from its readings (daylight)" in text for text in texts)


def test_most_findings_are_bounded() -> None:
    one = Audit(seal.verify, map_of)
    for _ in range(1000):
        one.feed(b"nonsense\n")
    assert len(one.finish().findings) == audit.MOST_FINDINGS
