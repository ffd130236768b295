"""1,000 hostile exchanges on a real pseudo-terminal in real time, paced at 115200 baud, with registers that move."""

from __future__ import annotations

import os
import random
import time

from heliograph.bus.modbus import open_bus
from heliograph.core.registers import Timing
from tests.bus.hostile import rounds
from tests.bus.pty_line import PtyLine
from tests.bus.virtual import FAULTS, HostileMeter, Registers

EXCHANGES = 1_000
BAUDRATE = 115_200
TIMING = Timing(timeout=0.04, retries=1)


def test_no_wrong_value_is_believed_on_a_real_line() -> None:
    """Fewer faults than in virtual time, for each costs real time-outs, and a margin for a busy computer."""
    seed = int(os.environ.get("HELIOGRAPH_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
    print(f"HELIOGRAPH_SEED={seed}")
    dice = random.Random(seed)
    faults = {name: share / 3 for name, share in FAULTS.items()}
    meter = HostileMeter(
        Registers(seed), random.Random(seed), faults, turnaround=0.002, timeout=TIMING.timeout, latest=3.0, copied=0.5
    )
    with PtyLine(meter.hear, BAUDRATE) as line:
        url = f"serial://{line.path}?baudrate={BAUDRATE}"
        bus = open_bus(url)
        outcome = rounds(
            EXCHANGES,
            bus,
            meter,
            dice,
            url,
            TIMING,
            time.monotonic,
            lambda _: time.sleep(dice.choice([0.0, 0.005, 0.02])),
        )
        bus.close()
    print(outcome)
    assert outcome.wrong == []
    assert outcome.exchanges >= EXCHANGES
    assert outcome.accepted > EXCHANGES / 5
    assert all(outcome.faults[fault] for fault in FAULTS)
