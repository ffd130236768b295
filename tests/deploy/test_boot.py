"""deploy/README.md followed word by word on a small Debian with a real systemd: installed, killed, hung, misled.

It needs root, systemd-nspawn and what .ci/run prepares: an archive of a Debian root (HELIOGRAPH_TEST_ROOT) and a folder
with the wheels of the README's step 1 (HELIOGRAPH_TEST_WHEELS). Nothing is fetched here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARCHIVE, WHEELS = os.environ.get("HELIOGRAPH_TEST_ROOT"), os.environ.get("HELIOGRAPH_TEST_WHEELS")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ARCHIVE and WHEELS), reason="no Debian root and wheels at hand; .ci/run makes them"),
]

# Stands in for sudo, and for the person at sudoedit.
PERSON = """
sudo() { if [ "$1" = -u ]; then runuser -u "$2" -- "${@:3}"; else "$@"; fi; }
sudoedit() { cat /test/config.toml > "$1"; }
apt() { :; }
set -euo pipefail
cd /test/tree
"""

# Two lines with one meter each; the serial one shows that the service may use a port of the group dialout and no other.
CONFIG = """
[site]
id = "boot"
timezone = "UTC"

[[bus]]
id = "network"
url = "tcp://127.0.0.1:5020"
every = "1s"

[[bus]]
id = "rs485"
url = "serial:///run/meter/line?baudrate=9600"
every = "1s"

[[meter]]
id = "roof"
bus = "network"
unit = 1
map = "eastron-sdm630"
rated_kw = 50

[[meter]]
id = "barn"
bus = "rs485"
unit = 1
map = "eastron-sdm630"
rated_kw = 50

[clock]
trust = "always"
"""

# A platform that nobody answers for; what matters is who can read its token.
UPLINK = """
[uplink.drec]
base_url = "http://127.0.0.1:9/api"
token = { credential = "drec.token" }
"""

# Shorter waits than a roof needs.
HURRY = "[Service]\nRestartSec=1\nWatchdogSec=6\n"

SIMULATOR = """
[Service]
ExecStart=/opt/heliograph/bin/heliograph simulate --tcp 127.0.0.1:5020 --serial /run/meter/line
ExecStartPost=/bin/sh -c 'until [ -e /run/meter/line ]; do sleep 0.1; done'
ExecStartPost=chgrp dialout /run/meter/line
ExecStartPost=chmod 660 /run/meter/line
RuntimeDirectory=meter
"""


def until(true: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Waits for something outside this process; the limit only bounds a failure."""
    last = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < last, f"in vain: {what}"
        time.sleep(0.2)


class Machine:
    """A booted Debian. Commands run in all its namespaces, as a person at its console would."""

    def __init__(self, folder: Path) -> None:
        root = folder / "root"
        root.mkdir()
        subprocess.run(["tar", "-xf", str(ARCHIVE), "-C", root], check=True)
        test = root / "test"
        (test / "tree").mkdir(parents=True)
        shutil.copy(ROOT / "config.example.toml", test / "tree")
        shutil.copytree(ROOT / "systemd", test / "tree/systemd")
        shutil.copytree(str(WHEELS), test / "tree" / "dist")
        (test / "config.toml").write_text(CONFIG)
        (test / "uplink.toml").write_text(UPLINK)
        (root / "etc/systemd/system/simulator.service").write_text(SIMULATOR)
        hurry = root / "etc/systemd/system/heliograph.service.d"
        hurry.mkdir(parents=True)
        (hurry / "hurry.conf").write_text(HURRY)
        self.console = (folder / "console").open("w")
        command = ["systemd-nspawn", "--directory", str(root), "--register=no", "--keep-unit", "--private-network"]
        self.host = subprocess.Popen(
            [*command, "--boot", "--console=pipe"], stdin=subprocess.DEVNULL, stdout=self.console, stderr=self.console
        )

    def booted(self) -> bool:
        children = Path(f"/proc/{self.host.pid}/task/{self.host.pid}/children").read_text().split()
        if not children:
            return False
        self.init = children[0]
        seen = self.run("systemctl is-system-running", check=False).stdout.strip()
        return seen in ("running", "degraded")  # udev has nothing to do here and may say so

    def run(self, script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["nsenter", "--target", self.init, "--all", "/bin/bash", "-c", PERSON + script]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if check and done.returncode != 0:
            log = self.run("journalctl --unit=heliograph --output=cat --lines=40", check=False).stdout
            pytest.fail(f"{script}\n{done.stdout}{done.stderr}\n{log}")
        return done

    def show(self, name: str) -> str:
        return self.run(f"systemctl show --property={name} --value heliograph").stdout.strip()

    def status(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(
            self.run("sudo -u heliograph heliograph status --json", check=False).stdout
        )
        return found

    def end(self) -> None:
        self.host.terminate()  # the container is shut down
        try:
            self.host.wait(20)
        except subprocess.TimeoutExpired:
            self.host.kill()
            self.host.wait()
        self.console.close()


def steps() -> dict[int, str]:
    """README's commands for a service, by the number of their step."""
    text = (ROOT / "deploy/README.md").read_text()
    (block,) = re.findall(r"## As a service\n.*?```sh\n(.*?)```", text, re.DOTALL)
    found = re.split(r"^# (\d)\. .*\n", block, flags=re.MULTILINE)
    return {0: found[0], **{int(number): lines for number, lines in zip(found[1::2], found[2::2], strict=True)}}


def install(machine: Machine) -> None:
    readme = steps()
    machine.run("systemctl daemon-reload")
    machine.run(readme[0])
    machine.run(readme[2])
    machine.run("systemctl start simulator")
    found = machine.run(readme[3].replace("/dev/ttyUSB0", "/run/meter/line --units 1-2")).stdout
    assert 'map        = "eastron-sdm630"' in found
    machine.run(readme[4])


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    # A quarter of a gigabyte, in memory where there is a place for it: other tests flush the disk all the time.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        machine = Machine(Path(folder))
        try:
            until(machine.booted, "systemd in the container")
            install(machine)
            yield machine
        finally:
            machine.end()


def last_read(machine: Machine) -> str:
    """When the meter that was read longest ago was read; "" while one of them is not."""
    meters = machine.status()["meters"]
    assert isinstance(meters, list)
    assert len(meters) == 2
    return min(meter["last_at"] if meter["state"] == "ok" else "" for meter in meters)


def test_a_service_installed_as_the_readme_says_reads_its_meters(machine: Machine) -> None:
    until(lambda: last_read(machine) > "", "readings of both meters")
    machine.run(steps()[5])
    assert machine.show("ActiveState") == "active"
    assert machine.run(f"ps -o user= -p {machine.show('MainPID')}").stdout.strip() == "heliograph"


def test_its_key_is_made_and_used_inside_the_sandbox(machine: Machine) -> None:
    def proof() -> dict[str, object]:
        found = machine.status()["proof"]
        assert isinstance(found, dict)
        return found

    until(lambda: proof()["checkpoint"] != 0, "the first checkpoint")
    assert len(str(proof()["key"])) == 64
    assert machine.run("stat -c '%U %a' /var/lib/heliograph/device.key").stdout.strip() == "heliograph 600"


def test_it_comes_back_when_it_is_killed(machine: Machine) -> None:
    before, read = machine.show("MainPID"), last_read(machine)
    machine.run(f"kill -KILL {before}")
    until(lambda: machine.show("SubState") == "running" and machine.show("MainPID") != before, "a new process")
    until(lambda: last_read(machine) > read, "readings after the restart")


def test_it_comes_back_when_it_hangs(machine: Machine) -> None:
    before, read = machine.show("MainPID"), last_read(machine)
    machine.run(f"kill -STOP {before}")
    until(lambda: machine.show("SubState") == "running" and machine.show("MainPID") != before, "a new process")
    assert "watchdog" in machine.run("journalctl --unit=heliograph --output=cat").stdout.lower()
    until(lambda: last_read(machine) > read, "readings after the restart")


def test_it_stops_within_5_seconds_and_without_complaint(machine: Machine) -> None:
    began = time.monotonic()
    machine.run("systemctl stop heliograph")
    assert time.monotonic() - began < 5
    assert (machine.show("Result"), machine.show("ExecMainStatus")) == ("success", "0")
    machine.run("systemctl start heliograph")


def test_a_wrong_configuration_is_told_once_and_not_tried_again(machine: Machine) -> None:
    read = last_read(machine)
    machine.run("sed -i 's/timezone/timezon/' /etc/heliograph/config.toml")
    machine.run("systemctl restart heliograph", check=False)
    until(lambda: machine.show("ActiveState") == "failed", "the end of the service")
    assert machine.show("ExecMainStatus") == "78"
    assert "timezone" in machine.run("journalctl --unit=heliograph --output=cat --lines=20").stdout
    machine.run("sed -i 's/timezon /timezone /' /etc/heliograph/config.toml && systemctl start heliograph")
    until(lambda: last_read(machine) > read, "readings after the correction")


def test_a_credential_reaches_the_service_and_no_person_needs_it(machine: Machine) -> None:
    read = last_read(machine)
    machine.run(
        """
        install -d -m 0700 /etc/credstore
        (umask 077; echo a-token > /etc/credstore/drec.token)
        cat /test/uplink.toml >> /etc/heliograph/config.toml
        sudo -u heliograph heliograph check
        systemctl restart heliograph
        """
    )
    until(lambda: last_read(machine) > read, "readings with an uplink beside them")
    assert machine.run("sudo -u heliograph cat /etc/credstore/drec.token", check=False).returncode != 0
