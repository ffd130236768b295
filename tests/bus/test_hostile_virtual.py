r"""100,000 hostile exchanges in virtual time: late, doubled, foreign, wrong, truncated, damaged, noisy, refused.

The oracle: the words behind every believed value are what the registers held at one instant between the request
that they answer and that answer. By hand, as many as you have patience for (four minutes a million):

    HELIOGRAPH_EXCHANGES=10000000 HELIOGRAPH_SEED=1 python -m pytest -s -n0 -o faulthandler_timeout=0 \
        -k no_wrong tests/bus/test_hostile_virtual.py
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import pytest

from heliograph.bus.modbus import RtuExchange
from heliograph.core.plan import Block
from heliograph.core.plausible import Known
from heliograph.core.registers import MeterMap, Timing
from heliograph.ports import Bus
from heliograph.work.read_block import BlockRead, decoded
from tests.bus.hostile import run
from tests.bus.virtual import FAULTS

EXCHANGES = int(os.environ.get("HELIOGRAPH_EXCHANGES", "100000"))


@pytest.fixture
def seed() -> int:
    chosen = int(os.environ.get("HELIOGRAPH_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
    print(f"HELIOGRAPH_SEED={chosen}")
    return chosen


ENERGY = ("energy_import", "energy_export")

SITES: dict[str, tuple[int, dict[str, Any]]] = {
    # share of all exchanges in percent, and how the meter is polled
    "20 quantities, back to back": (30, {}),
    "20 quantities, with the maker's pause": (20, {"pause": 0.06}),
    "energy alone, so that every request has the same shape": (25, {"quantities": ENERGY}),
    "20 quantities, through a converter": (15, {"url": "rtu+tcp://192.168.1.51:23"}),
    "energy alone, once a second": (10, {"quantities": ENERGY, "every": 1.0}),
}


@pytest.mark.parametrize("site", SITES)
def test_no_wrong_value_is_believed(site: str, seed: int) -> None:
    share, polled = SITES[site]
    outcome = run(EXCHANGES * share // 100, seed, **polled)
    print(outcome)
    assert outcome.wrong == []
    assert outcome.exchanges >= EXCHANGES * share // 100
    for fault in FAULTS:
        assert outcome.faults[fault] > outcome.exchanges // 100, f"hardly any {fault} came to pass"
    # Safe is not enough: of four exchanges that go well, at least one ends as a believed block.
    assert outcome.accepted > outcome.faults["right"] / 4


def test_an_undisturbed_meter_costs_one_request_a_block(seed: int) -> None:
    outcome = run(3000, seed, faults={})
    assert outcome.wrong == []
    assert not outcome.failed
    assert outcome.accepted > 0.75 * outcome.exchanges  # the rest: clouds that halve the power, and first reads


def test_without_drain_and_silence_wrong_values_are_believed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A negative control: the oracle sees what the transaction loop prevents."""
    monkeypatch.setattr(RtuExchange, "_settle", lambda *_: None)
    assert run(3_000, seed).wrong != []


def without_judgement(
    bus: Bus, unit: int, block: Block, map: MeterMap, timing: Timing, _: Mapping[str, Known], **rest: Any
) -> BlockRead:
    words = bus.read(unit, block.function, block.address, block.count, timing)
    now: Callable[[], float] = rest["now"]
    factors: dict[str, Decimal] = {}
    return BlockRead(block, now(), words, *decoded(block, words, map, factors))


def test_without_judgement_of_the_content_wrong_values_are_believed(seed: int) -> None:
    """A negative control: a valid checksum says nothing about whose content it is."""
    assert run(2_000, seed, read=without_judgement).wrong != []
