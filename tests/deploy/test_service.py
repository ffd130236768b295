"""The service file as systemd itself reads it: valid, and sealed as tightly as the design says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "systemd" / "heliograph.service"
PROGRAM = "/opt/heliograph/bin/heliograph"

if shutil.which("systemd-analyze") is None and not os.environ.get("CI"):
    pytest.skip("systemd-analyze is missing; Debian has it in the package systemd", allow_module_level=True)


def analyze(unit: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *arguments, str(unit)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"SYSTEMD_PAGER": ""})


def unit(folder: Path, *changes: tuple[str, str]) -> Path:
    """A copy that starts a program which exists here, with some lines changed."""
    text = UNIT.read_text()
    for old, new in ((PROGRAM, sys.executable), *changes):
        assert old in text
        text = text.replace(old, new)
    path = folder / "heliograph.service"
    path.write_text(text)
    return path


def test_systemd_knows_every_line_of_the_service_file(tmp_path: Path) -> None:
    seen = analyze(unit(tmp_path), "verify", "--man=no")
    assert (seen.returncode, seen.stderr) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("NoNewPrivileges=yes", "NoNewPrivilege=yes", "NoNewPrivilege"),
        ("WatchdogSec=90", "WatchdogSec=often", "often"),
        ("@privileged", "@privilege", "@privilege"),
    ],
)
def test_systemd_would_name_a_line_that_it_does_not_know(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert told in analyze(unit(tmp_path, (old, new)), "verify", "--man=no").stderr


def test_exposure_is_at_most_1_5(tmp_path: Path) -> None:
    seen = analyze(unit(tmp_path), "security", "--offline=true", "--threshold=15")
    assert seen.returncode == 0, seen.stdout


@pytest.mark.parametrize("line", ["User=heliograph", "CapabilityBoundingSet=", "SystemCallFilter=@system-service"])
def test_exposure_rises_above_1_5_when_one_seal_is_broken(tmp_path: Path, line: str) -> None:
    broken = unit(tmp_path, (f"\n{line}\n", "\n"))
    assert analyze(broken, "security", "--offline=true", "--threshold=15").returncode != 0


def test_the_daemon_is_neither_root_nor_given_up_on() -> None:
    lines = UNIT.read_text().splitlines()
    for line in (
        "User=heliograph",
        "CapabilityBoundingSet=",
        "ProtectSystem=strict",
        f"ExecStart={PROGRAM} run --config /etc/heliograph/config.toml",
        "Type=notify",
        "StartLimitIntervalSec=0",
        "RestartPreventExitStatus=78",
    ):
        assert line in lines
