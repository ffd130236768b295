"""What somebody is told to type about a day that waits works as it stands."""

from __future__ import annotations

import pytest

from heliograph.core.delivery import advice
from heliograph.uplink.drec_packing import NO_ZERO, STRADDLES
from heliograph.uplink.drec_rules import COMMISSIONING, ONBOARDING, RULES

DAY = "roof 2026-03-14 --uplink drec"
RETRY = f"heliograph backlog retry {DAY}"
LET_GO = f"heliograph backlog set-aside {DAY}"


@pytest.mark.parametrize(
    ("rule", "remedy", "ends"),
    [
        ("R422", "Register it.", f"Register it. Then: {RETRY}, or to let it go: {LET_GO}"),
        ("aside/E1", ONBOARDING, f"certified: {RETRY} --as-history, or to let it go: {LET_GO}"),
        ("aside/E1", STRADDLES, f"is sent. To let it go: {LET_GO}"),
        ("aside/H5", COMMISSIONING, f"platform. To let it go: {LET_GO}"),
        ("aside/H6", "The platform takes no older energy.", f"energy. To let it go: {LET_GO}"),
        ("aside/H4", NO_ZERO, f"lost. To let it go: {LET_GO}"),
        *((one.id, one.remedy, f"{RETRY}, or to let it go: {LET_GO}") for one in RULES if one.id in ("L1", "D6")),
    ],
)
def test_one_command_that_can_work_is_named(rule: str, remedy: str, ends: str) -> None:
    told = advice(rule, remedy, "roof", "2026-03-14", "drec")
    assert told.endswith(ends) and "METER" not in told
    assert told.count("backlog retry") == (RETRY in ends) and told.count("set-aside") == 1
