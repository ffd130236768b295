"""heliograph simulate, as a person starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from heliograph import settings
from heliograph.cli.simulate import command
from heliograph.core.errors import UsageError
from heliograph.rehearsal.faults import KINDS
from heliograph.rehearsal.frames import tcp

ANY = ["--tcp", "127.0.0.1:0", "--for", "1ms"]
HELIOGRAPH = [sys.executable, "-c", "from heliograph.cli import main; main()"]
SITE = '[site]\nid = "rehearsal"\ntimezone = "Asia/Singapore"\ndata_dir = "{}"\n\n'


def simulate(*arguments: str) -> Result:
    """In this process, with errors raised."""
    return CliRunner().invoke(command, list(arguments), catch_exceptions=False, standalone_mode=False)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HELIOGRAPH, "simulate", *arguments],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ANY,
        [*ANY, "--rtu-tcp", ":0", "--serial", "--meters", "3", "--unit", "7"],
        [*ANY, "--map", "chint-dtsu666", "--set", "ct_ratio=40"],
        [*ANY, "--map", "eastron-sdm660"],
        [*ANY, "--cts", "1,-2,3"],
        [*ANY, "--map", "eastron-sdm120", "--rated-kw", "4.6"],
    ],
)
def test_what_is_printed_is_configuration_that_can_be_used(arguments: list[str], tmp_path: Path) -> None:
    done = simulate(*arguments)
    config = tmp_path / "config.toml"
    config.write_text(SITE.format(tmp_path) + done.stdout)
    loaded = settings.load(config).settings
    assert len(loaded.meter) == len(loaded.bus) * (3 if "--meters" in arguments else 1)
    assert {meter.bus for meter in loaded.meter} == {bus.id for bus in loaded.bus}
    assert len(re.findall("^# .* answers as ", done.stdout, re.M)) == len(loaded.bus)


def test_json_tells_the_same() -> None:
    done = simulate(*ANY, "--serial", "--meters", "2", "--fault", "late=0.02", "--speed", "60", "--start-kwh", "41.237",
                    "--serial-number", "23451234", "--json")  # fmt: skip
    told = json.loads(done.stdout)
    assert [(meter["unit"], meter["serial"], meter["counted_wh"]) for meter in told["meters"]] == [
        (1, "23451234", 41_237),
        (2, "23451235", 41_237),
    ]
    assert [endpoint["url"].partition("://")[0] for endpoint in told["endpoints"]] == ["tcp", "serial"]
    assert told["endpoints"][0]["path"] is None and told["endpoints"][1]["path"].startswith("/dev/")
    assert (told["map"], told["speed"], told["faults"]) == ("eastron-sdm630", 60, {"late": 0.02})
    assert [bus["url"] for bus in tomllib.loads(told["config"])["bus"]] == [end["url"] for end in told["endpoints"]]


def test_a_link_is_made_and_taken_away(tmp_path: Path) -> None:
    link = tmp_path / "ttyMeter"
    done = simulate("--serial", str(link), "--for", "1ms", "--json")
    assert json.loads(done.stdout)["endpoints"][0]["url"].startswith(f"serial://{link}?")
    assert not link.is_symlink()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_until_it_is_told_to_stop_and_then_says_what_it_saw(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*HELIOGRAPH, "simulate", "--tcp", "127.0.0.1:0", "--at", "2026-03-14T12:00"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        found = re.match(r"# tcp://127\.0\.0\.1:(\d+) answers", process.stdout.readline())
        assert found
        with socket.create_connection(("127.0.0.1", int(found[1])), timeout=5) as connection:
            connection.sendall(tcp(1, 1, b"\x04\x00\x00\x00\x02"))
            assert len(connection.recv(13)) == 13
            os.kill(process.pid, number)
            _, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "1 answers, 1 requests" in err


@pytest.mark.parametrize(
    ("arguments", "told", "hint"),
    [
        (["--map", "eastron-sdm63"], 'no map "eastron-sdm63"', "eastron-sdm630"),
        (["--tcp", "5020"], "5020 is not HOST:PORT", "127.0.0.1:5020"),
        (["--tcp", "127.0.0.1:70000"], "70000 is not HOST:PORT", "127.0.0.1:5020"),
        (["--rtu-tcp", "192.0.2.1:5021"], "cannot listen on 192.0.2.1:5021", "address of this computer"),
        (["--fault", "lat=0.02"], "no fault 'lat'", "late"),
        (["--fault", "late"], "'' is not a number", "late=0.02"),
        (["--fault", "late=2"], "2 is not a probability", "0 to 1"),
        (["--fault", "late=0.6", "--fault", "crc=0.6"], "add up to 1.2", "must not exceed 1"),
        (["--late-by", "1s", "500ms"], "between 1 and 0.5 s late", "shorter"),
        (["--late-by", "1", "2"], "--late-by 1:", "with its unit"),
        (["--for", "soon"], "--for soon", "2h"),
        (["--turnaround", "10"], "--turnaround 10", "10ms"),
        (["--unit", "240", "--meters", "10"], "would end at unit 249", "247"),
        (["--serial-number", "AB-1"], "AB-1 is not a number", "digits"),
        (["--set", "ct_ratio"], "no value in it", "ct_ratio=40"),
        (["--set", "frequenzy=51"], "has no frequenzy", "frequency"),
        (["--set", "frequency=fast"], "'fast' is not a number", "float32"),
        (["--map", "chint-dtsu666", "--set", "ct_ratio=0"], "ct_ratio must be above zero", "ct_ratio=1"),
        (["--cts", "1,two,3"], "--cts 1,two,3", "a minus"),
        (["--cts", "1,2"], "current transformers sit on [1, 2]", "each conductor once"),
        (["--zone", "Asia/Singapur"], "no time zone Asia/Singapur", "Asia/Singapore"),
        (["--at", "noon"], "noon is not a moment", "2026-03-14T11:30"),
        (["--serial", "/proc/ttyMeter"], "cannot make /proc/ttyMeter", "directory you may write to"),
    ],
)
def test_a_bad_argument_is_told_with_the_next_step_and_nothing_starts(
    arguments: list[str], told: str, hint: str
) -> None:
    with pytest.raises(UsageError) as error:
        simulate("--for", "1ms", *arguments)
    assert told in error.value.message
    assert hint in error.value.hint
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "arguments", [["--map", "eastron-sdm63"], ["--baud", "9601"], ["--unit", "0"], ["--tcpp", ":1"]]
)
def test_a_bad_argument_ends_with_exit_code_2_and_an_empty_stdout(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.strip()


def test_the_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    simulate(*ANY)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_gateway_on_real_time_is_warned_of_a_faster_sun() -> None:
    assert "60 times as fast" in simulate(*ANY, "--speed", "60").stderr
    assert "times as fast" not in simulate(*ANY).stderr


def test_every_fault_can_be_asked_for() -> None:
    asked = [part for kind in KINDS for part in ("--fault", f"{kind}=0.01")]
    told = json.loads(simulate(*ANY, "--json", *asked).stdout)
    assert told["faults"] == dict.fromkeys(KINDS, 0.01)
