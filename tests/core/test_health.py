"""What a picture of the site says in one figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from heliograph.core.health import Health, ProofHealth, UplinkHealth
from heliograph.outputs.metrics import Metrics
from heliograph.outputs.mqtt import state_document
from heliograph.outputs.sparkplug import of_the_node
from tests.fakes import START, FakeClock


@pytest.mark.parametrize(
    ("rows", "aside", "backlog", "stopped"),
    [
        ({}, 0, 0, 0),
        ({"due": 2, "unclear": 1, "accepted": 4, "confirmed": 90}, 0, 7, 0),
        ({"due": 2, "rejected": 5, "held": 3}, 0, 10, 8),
        ({"due": 2, "rejected": 5, "held": 3}, 4, 6, 4),
    ],
)
def test_backlog_is_one_figure_wherever_it_is_shown(
    rows: Mapping[str, int], aside: int, backlog: int, stopped: int
) -> None:
    uplink = UplinkHealth("redex", rows, None, "", "", None, aside)
    assert (uplink.backlog, uplink.stopped) == (backlog, stopped)
    proof = ProofHealth(0, "", "", 0, None, "", "")
    health = Health("s", "UTC", "1", datetime(2026, 3, 14, tzinfo=UTC), True, True, (), (uplink,), 0, 0, proof)
    said = state_document(health)["uplinks"]["redex"]
    assert (said["backlog"], said["stopped"]) == (backlog, stopped)
    both = replace(health, uplinks=(uplink, replace(uplink, name="drec")))
    assert of_the_node(both)["backlog"] == 2 * backlog
    page = Metrics("127.0.0.1", 0, FakeClock(START), "s", {}, ("redex",))
    page.picture(health, ())
    assert f'heliograph_outbox_backlog_rows{{uplink="redex"}} {backlog:.1f}' in page._made({})[1].decode()
