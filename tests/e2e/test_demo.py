from __future__ import annotations

import json
import subprocess
import sys


def test_the_demo_ends_with_a_difference_of_0_wh_within_a_minute() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "heliograph", "demo", "--json"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert [meter["difference_wh"] for meter in found["meters"]] == [0, 0]
    for meter in found["meters"]:
        assert meter["metered_wh"] == meter["closed_wh"] == meter["delivered_wh"] == meter["confirmed_wh"] > 100_000
        assert set(meter) == {"id", "metered_wh", "closed_wh", "delivered_wh", "confirmed_wh", "difference_wh"}
    assert found["days"] == 4
    assert found["outage"] == {"from": "2026-03-13T14:00Z", "to": "2026-03-14T18:00Z"}
    assert found["late_answers"] > 0
    assert found["violations"] == []
    assert found["seconds"] < 60
