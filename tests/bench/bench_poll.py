"""One poll of an SDM630's 20 quantities at 9600 baud against what the wire allows: python tests/bench/bench_poll.py

The limit is the cheaper of the plan with the fewest legal requests and the plan that takes the least time: characters,
silences (3.5 characters, or the pause the maker asks for) and the device's 10 ms to think. Beside it, one request per
register.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from datetime import UTC, datetime

from heliograph import library
from heliograph.bus.modbus import open_bus
from heliograph.core import line as lines
from heliograph.core.decode import addresses
from heliograph.core.plan import Block, LineCost, line_cost, plan
from heliograph.core.registers import Timing
from heliograph.ports import Bus
from heliograph.rehearsal.line import Line, Wire
from heliograph.rehearsal.meter import SimulatedMeter

ROUNDS = 20
BAUD = 9600
TURNAROUND = 0.010
NOON = datetime(2026, 3, 14, 4, 30, tzinfo=UTC)


def main() -> None:
    map = library.load("eastron-sdm630", local=None).map
    meter = SimulatedMeter(map, clock=lambda: NOON, start_export_wh=41_230_700)
    wire = Wire({1: meter}, baud=BAUD, turnaround=TURNAROUND, strict_silence=True)
    with Line(wire) as line:
        bus = open_bus(line.url)
        print(
            f"{BAUD} baud 8N1, {TURNAROUND * 1000:.0f} ms to think; the device ignores requests within 3.5 characters"
        )
        for pause, title in ((0.0, "silences of 3.5 characters"), (0.060, "the maker's pause of 60 ms")):
            timing = replace(map.timing, pause=pause, turnaround=TURNAROUND)
            cost = line_cost(lines.parse(line.url), timing)
            ours = plan(map, None, cost)
            fewest = plan(map, None, replace(cost, turnaround=1.0))
            limit = min(_limit(blocks, cost) for blocks in (ours, fewest))
            single = tuple(
                Block(map.function_of(r), addresses(r)[0], len(addresses(r)), (r,))
                for block in ours
                for r in block.registers
            )
            measured = statistics.median(_poll(bus, ours, timing) for _ in range(ROUNDS))
            slow = statistics.median(_poll(bus, single, timing) for _ in range(3))
            print(f"\n{title}: {', '.join(str(block) for block in ours)}")
            print(f"  limit                      {limit * 1000:7.1f} ms   (fewest requests: {len(fewest)})")
            ratio = f"{measured / limit:.3f} x the limit (at most 1.10)"
            print(f"  Heliograph                 {measured * 1000:7.1f} ms   {ratio}")
            print(f"  one request per register   {slow * 1000:7.1f} ms   {slow / limit:.2f} x")
        bus.close()


def _limit(blocks: tuple[Block, ...], cost: LineCost) -> float:
    """Seconds from the first character to the last; the silence behind the last answer costs nobody time."""
    return sum(cost.of(block.count) for block in blocks) - max(cost.silence, cost.pause)


def _poll(bus: Bus, blocks: tuple[Block, ...], timing: Timing) -> float:
    time.sleep(0.1)  # the pause behind the poll before is not part of this one
    began = time.perf_counter()
    for block in blocks:
        bus.read(1, block.function, block.address, block.count, timing)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
