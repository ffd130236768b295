"""How long it takes to check the evidence of ten meters over ten years, beside hashing the same bytes.

python tests/bench/bench_verify.py [YEARS]
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from heliograph import library, seal
from heliograph.cli.verify import audited
from heliograph.core import daily
from heliograph.core.chain import canonical
from heliograph.core.daily import Border, Day
from heliograph.core.delivery import Parcel, Verdict
from heliograph.core.readings import Moment, Reading, Source
from heliograph.core.site import Report
from heliograph.store import Store
from heliograph.work.attest import attest
from heliograph.work.export import pack
from tests.fakes import SINGAPORE, FakeClock
from tests.work.test_export import manifest, words_of

METERS = [f"m{number}" for number in range(10)]
MAP = library.load("eastron-sdm630", local=None)
CONFIGURED: dict[str, object] = {"production": "energy_export", "order": None, "factors": {}, "map": MAP.digest}
FIRST = date(2026, 1, 1)


def build(folder: Path, years: int) -> Store:
    """Days closed, sent in one batch a day, accepted, confirmed; a signed checkpoint each day."""
    store, clock = Store.writer(folder), FakeClock(daily.start_of(FIRST, SINGAPORE))
    store._connection.execute("PRAGMA synchronous=OFF")  # what is measured is the reading, not the making
    store.readings.begin("bench", "Asia/Singapore", clock.boot_id, clock.now())
    store.readings.know_map(MAP.digest, MAP.map.name, MAP.text)
    for meter in METERS:
        store.readings.know_meter(meter, "energy_export")
    store.chain.configure({"meters": dict.fromkeys(METERS, CONFIGURED)}, clock.now())
    report = Report("platform", "STR", timedelta(0))
    kept: dict[bytes, tuple[bytes, bytes]] = {}

    def sign(message: bytes) -> tuple[bytes, bytes]:
        kept.setdefault(b"key", seal._sign_here(folder / seal.FILE, b""))
        return seal._sign_here(folder / seal.FILE, message)

    opening: dict[str, Border] = {}
    for number in range(years * 365 + 1):
        kwh = 1000.0 + 41.25 * number
        moment = Moment(clock.now(), clock.boot_id, clock.since_boot(), True)
        source = Source(1, "input", 0x4A, 2, MAP.digest)
        words, wh = words_of(kwh), int(kwh * 1000)
        store.readings.add([Reading(meter, moment, wh, {}, words, source) for meter in METERS])
        for meter in METERS:
            last = store.readings.last(meter)
            assert last is not None
            border = Border(clock.now(), wh, wh - 1_000_000, "start" if number == 0 else "read", last.id or 0, None)
            if number == 0:
                store.days.commission(meter, border, clock.now())
            else:
                day = FIRST + timedelta(days=number - 1)
                store.days.close(Day(meter, day, opening[meter], border), clock.now(), [report])
            opening[meter] = store.days.last_border(meter) or border
        if rows := store.outbox.candidates("platform", clock.now(), ordered=False, limit=3000):
            body = canonical([[row.meter, str(row.day), row.period_wh, row.total_wh] for row in rows])
            now = clock.now()
            store.outbox.claim("platform", Parcel("/reads", body, tuple(rows)), now, now)
            for state in ("accepted", "confirmed"):
                store.outbox.settle([(row.id, Verdict(state, "201"), now) for row in rows], now)
        attest("bench", store, clock, sign)
        clock.leap(days=1)
    return store


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    years = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        store = build(folder, years)
        last = FIRST + timedelta(days=years * 365)
        path = folder / "bench.pack"

        def export() -> None:
            made = pack(store, "bench", FIRST, last, METERS, daily.end_of(last, SINGAPORE))
            lines = [(one if isinstance(one, bytes) else canonical(one)) + b"\n" for one in made]
            path.write_bytes(b"".join([*lines, manifest(lines, folder / seal.FILE)]))

        exporting = timed(export)
        hashing = timed(lambda: hashlib.sha256(path.read_bytes()).hexdigest())
        began = time.perf_counter()
        report = audited(path)
        verifying = time.perf_counter() - began
        assert report.sound, report.findings[:3]
        days = sum(one.days for one in report.meters.values())
        print(f"{years} years of {len(METERS)} meters: {days} days, {report.entries} entries, {report.checkpoints}")
        print(f"checkpoints, {path.stat().st_size / 1e6:.1f} MB; export {exporting:.1f} s, verify {verifying:.1f} s =")
        print(f"{verifying / hashing:.0f} x one SHA-256 of the file; {report.decoded} readings decoded anew")
        store.close()


if __name__ == "__main__":
    main()
