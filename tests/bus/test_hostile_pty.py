"""1,000 hostile exchanges on a real pseudo-terminal in real time, with the simulated meter of the product."""

from __future__ import annotations

import os
import random
import time
from datetime import UTC, datetime

from heliograph import library
from heliograph.bus.modbus import open_bus
from heliograph.core import line as lines
from heliograph.core.decode import reading
from heliograph.core.errors import BusError
from heliograph.core.plan import line_cost, plan
from heliograph.core.plausible import Known
from heliograph.core.registers import Timing
from heliograph.rehearsal.faults import Faults
from heliograph.rehearsal.line import Line, Wire
from heliograph.rehearsal.meter import Refusal, SimulatedMeter
from heliograph.work.read_block import read_block, remembered

EXCHANGES = 1_000
NOON = datetime(2026, 3, 14, 4, 30, tzinfo=UTC)
FAULTS = Faults(
    silence=0.02, late=0.05, doubled=0.04, foreign=0.03, truncated=0.03, crc=0.03, noise=0.03, busy=0.01, wrong=0.05,
    late_by=(0.04, 0.16),
)  # fmt: skip


def test_no_wrong_value_is_believed_on_a_real_line() -> None:
    """The meter's time stands still, so whatever is believed must be what it holds, to the last bit."""
    seed = int(os.environ.get("HELIOGRAPH_SEED", random.randrange(1_000_000)))
    print(f"seed {seed}")
    map = library.load("eastron-sdm630", local=None).map
    meter = SimulatedMeter(map, clock=lambda: NOON, start_export_wh=41_230_700, start_import_wh=900_000, seed=seed)
    timing = Timing(timeout=0.04, retries=0)
    believed = wrong = 0
    with Line(Wire({1: meter}, baud=115_200, turnaround=0.002, faults=FAULTS, seed=seed)) as line:
        bus = open_bus(line.url)
        blocks = plan(map, None, line_cost(lines.parse(line.url), timing))
        known: dict[str, Known] = {}
        while bus.counters.requests < EXCHANGES:
            for block in blocks:
                try:
                    read = read_block(
                        bus, 1, block, map, timing, known, now=time.monotonic, rated_kw=50, production="energy_export"
                    )
                except BusError:
                    continue
                known = remembered(known, read)
                for register in block.registers:
                    if register.quantity in read.values:
                        believed += 1
                        words = meter.words(map.function_of(register), register.address or 0, 2, NOON)
                        assert not isinstance(words, Refusal)
                        wrong += read.values[register.quantity] != reading(register, "ABCD", words)
        faults = dict(line.counts)
        bus.close()
    print(f"{believed} values believed, {faults}")
    assert wrong == 0
    assert believed > 3 * EXCHANGES
    for fault in ("silence", "late", "doubled", "foreign", "truncated", "crc", "noise", "wrong"):
        assert faults[fault] >= 5, fault
