"""heliograph record and simulate --recording, as a technician types them: straight from a line, and by the gateway."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from heliograph import app, control, library, settings
from heliograph.cli import heliograph
from heliograph.cli.record import _written
from heliograph.core.errors import HeliographError, UsageError
from heliograph.core.recording import Recording, image, parse, text
from heliograph.daemon import Daemon
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.replay import RecordedMeter
from heliograph.rehearsal.server import Server
from heliograph.rehearsal.sun import Sky
from tests.fakes import SINGAPORE
from tests.work.test_record import NOON, SERIAL, sdm630

CONFIG = """
[site]
id = "s"
timezone = "Asia/Singapore"
data_dir = "{folder}/data"
[[bus]]
id = "lan"
url = "{url}"
every = "1h"
[[meter]]
id = "roof"
bus = "lan"
map = "eastron-sdm630"
rated_kw = 50
[clock]
trust = "always"
"""
HELIOGRAPH = [sys.executable, "-m", "heliograph"]


def run(*words: str) -> Result:
    return CliRunner().invoke(heliograph, list(words), standalone_mode=False)


def told(result: Result) -> HeliographError:
    assert isinstance(result.exception, HeliographError), result.output
    return result.exception


def made(folder: Path) -> Recording:
    (path,) = folder.rglob("*.toml")
    return parse(path.read_text())


@pytest.fixture
def server() -> Iterator[Server]:
    with Server({1: sdm630()}) as running:
        yield running


def test_a_line_is_recorded_without_any_configuration_and_compared_with_the_display(
    server: Server, tmp_path: Path
) -> None:
    line = ["--bus", server.url, "--map", "eastron-sdm630", "--to", str(tmp_path)]
    done = run("record", *line, "--display", "energy_export=41.8531MWh", "--also", "holding:0xFC00-0xFC05")
    assert done.return_value == 0, done.output
    path = tmp_path / "eastron-sdm630" / "eastron-sdm630_256.toml"
    assert str(path) in done.stdout and "DIFFERS" not in done.stdout
    recording = parse(path.read_text())
    assert (recording.origin, recording.unit, recording.line) == ("captured", 1, "tcp")
    assert recording.masked == ("serial_number",) and str(SERIAL) not in path.read_text()
    assert image(recording)[("holding", 0xFC00)] << 16 | image(recording)[("holding", 0xFC01)] == 12345678
    assert [(no.address, no.count, no.code) for no in recording.refused][-1] == (0xFC04, 2, 2)
    again = run("record", *line, "--json")  # never over another one
    assert json.loads(again.stdout)["path"] == str(path.with_name("eastron-sdm630_256-2.toml"))


def test_a_display_that_shows_something_else_ends_with_1_and_the_next_step(server: Server, tmp_path: Path) -> None:
    line = ["--bus", server.url, "--map", "eastron-sdm630", "--to", str(tmp_path)]
    done = run("record", *line, "--display", "energy_export=41.8531", "--display", "frequency=50.0")
    assert done.return_value == 1
    assert re.search(r"energy_export +41\.8531 kWh +41853\.\d+ kWh +DIFFERS", done.stdout)
    assert "energy_export is not what the display shows" in done.stderr and "heliograph probe" in done.stderr


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ([], "say what to record", "record --help"),
        (["roof", "--unit", "2"], "go with --bus", "configuration"),
        (["--bus", "tcp://127.0.0.1:1"], "needs a --map", "heliograph map list"),
        (["--bus", "tcp://127.0.0.1:1", "--map", "eastron-smd630"], "no map", "eastron-sdm630"),
        (["--bus", "tcp://127.0.0.1:1", "--map", "eastron-sdm630"], "refused", "Modbus TCP switched on"),
        (["--every", "soon", "--bus", "tcp://127.0.0.1:1"], "--every soon", "10s"),
    ],
)
def test_what_is_missing_is_told_with_the_next_step(words: list[str], message: str, hint: str) -> None:
    error = told(run("record", *words))
    assert message in error.message and hint in error.hint, (error.message, error.hint)


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--also", "0xFF-0x00"], "no range", "0x0000-0x00FF"),
        (["--also", "coil:0-9"], "no range", "holding:0-99"),
        (["--also", "0-x"], "no range", "0x0000-0x00FF"),
        (["--also", "0-65536"], "no range", "8192"),
        (["--display", "energy_exprt=1"], "has no energy_exprt", "energy_export"),
        (["--display", "energy_export=many"], "'many' is nothing that a display shows", "Wh, kWh, MWh"),
        (["--display", "energy_export=5kW"], "'5kW' is nothing", "Wh, kWh, MWh"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_asked(
    words: list[str], message: str, hint: str, server: Server, tmp_path: Path
) -> None:
    error = told(run("record", "--bus", server.url, "--map", "eastron-sdm630", "--to", str(tmp_path), *words))
    assert message in error.message and hint in error.hint, (error.message, error.hint)
    assert server.counts["requests"] == 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["", "recordings/today"])
def test_a_folder_that_takes_no_file_is_told_before_anything_is_asked(below: str, server: Server) -> None:
    words = ["--bus", server.url, "--map", "eastron-sdm630", "--to", str(Path("/proc") / below)]
    error = told(run("record", *words))
    assert "/proc" in error.message and "cannot be written" in error.message and "--to" in error.hint
    assert server.counts["requests"] == 0


def test_a_folder_that_goes_away_meanwhile_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        _written(tmp_path / "taken" / "some.toml", "")


def test_a_serial_number_in_what_a_person_writes_is_masked(server: Server, tmp_path: Path) -> None:
    words = ["--note", f"my serial {SERIAL} here", "--model", f"SDM {SERIAL}", "--display", f"serial_number={SERIAL}"]
    done = run("record", "--bus", server.url, "--map", "eastron-sdm630", "--to", str(tmp_path), *words)
    assert done.return_value == 0, done.output
    (path,) = tmp_path.rglob("*.toml")
    assert str(SERIAL) not in path.read_text() and str(SERIAL) not in str(path)
    assert made(tmp_path).note == "my serial 12345678 here"


def test_a_serial_number_is_masked_where_the_device_says_it_is_another(server: Server, tmp_path: Path) -> None:
    words = ["--also", "holding:0xFC00-0xFC03", "--note", f"{SERIAL}"]
    done = run("record", "--bus", server.url, "--map", "chint-dtsu666", "--to", str(tmp_path), *words)
    assert done.exception is None, done.exception
    recorded = image(made(tmp_path))
    assert recorded["holding", 0xFC02] in (112, 121)
    assert recorded["holding", 0xFC00] << 16 | recorded["holding", 0xFC01] == 12345678
    assert made(tmp_path).note == "12345678" and made(tmp_path).masked == ("serial_number",)
    assert "By what it says of itself this is eastron-sdm630" in done.stdout
    assert "--also has read may hold a serial number" in done.stdout


def test_a_recording_is_not_replayed_as_another_map(server: Server, tmp_path: Path) -> None:
    run("record", "--bus", server.url, "--map", "eastron-sdm630", "--to", str(tmp_path))
    (path,) = tmp_path.rglob("*.toml")
    words = ["simulate", "--recording", str(path), "--tcp", "127.0.0.1:0", "--for", "1ms"]
    error = told(run(*words, "--map", "huawei-sun2000"))
    assert "is of eastron-sdm630, not of huawei-sun2000" in error.message and "--map" in error.hint
    for fitting in ([], ["--map", "eastron-sdm630"]):
        assert run(*words, *fitting).exception is None


@pytest.mark.parametrize("verb", ["doctor", "probe", "record"])
def test_ctrl_c_is_answered_by_a_word(verb: str, tmp_path: Path) -> None:
    """While the verb waits for a device that says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        words = {
            "doctor": [url],
            "probe": ["--bus", url, "0x0000-0x0050"],
            "record": ["--bus", url, "--map", "eastron-sdm630", "--to", str(tmp_path)],
        }[verb]
        process = subprocess.Popen(
            [*HELIOGRAPH, verb, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            silent.settimeout(30)
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(12)
                os.kill(process.pid, signal.SIGINT)
                _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err.strip().endswith("Stopped before it was done.") and "Traceback" not in err


@contextmanager
def gateway(config: Path) -> Iterator[Daemon]:
    site = app.load(config)
    with site.writer() as store:
        running = Daemon(site, store)
        answering = control.Control(site.socket, running.answer, running.rest)
        running.start()
        try:
            yield running
        finally:
            answering.close()
            running.stop()


def test_a_meter_is_recorded_by_the_running_gateway_to_the_same_words(server: Server, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(folder=tmp_path, url=server.url))
    words = ["--config", str(config), "record", "roof", "--also", "0x0058-0x0063"]
    straight = run(*words, "--to", str(tmp_path / "straight"))
    assert straight.return_value == 0, straight.exception
    with gateway(config):
        asked = run(*words, "--to", str(tmp_path / "asked"))
        assert asked.return_value == 0, asked.exception
    first, second = made(tmp_path / "straight"), made(tmp_path / "asked")
    assert (first.line, second.line) == ("tcp", "tcp, by the gateway")
    assert [(p.address, p.words) for p in first.pieces] == [(p.address, p.words) for p in second.pieces]
    assert first.refused == second.refused and first.refused
    assert second.masked == ("serial_number",)


def test_a_gateway_says_why_the_meter_did_not_answer_and_writes_nothing(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    with Server({}) as dead:
        config.write_text(CONFIG.format(folder=tmp_path, url=dead.url))
        with gateway(config):
            error = told(run("--config", str(config), "record", "roof", "--to", str(tmp_path / "out")))
    assert error.exit_code == 69 and "no answer from unit 1" in error.message
    assert not (tmp_path / "out").exists()


def test_on_a_terminal_the_display_is_asked_for_and_progress_is_drawn(server: Server, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    words = ["record", "--bus", server.url, "--map", "eastron-sdm630", "--to", str(tmp_path)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [*HELIOGRAPH, *words],
        stdin=theirs,
        stderr=theirs,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        said = b""
        while b"energy_export" not in said:
            said += os.read(ours, 1024)
        os.write(ours, b"a lot\n")
        while b"nothing that a display shows" not in said:
            said += os.read(ours, 1024)
        os.write(ours, b"41853,1\n")  # as a German display has it
        with suppress(OSError):  # Linux: the last one on the other side has closed it
            while more := os.read(ours, 1024):
                said += more
        out = process.stdout.read().decode() if process.stdout is not None else ""
    os.close(ours)
    assert process.returncode == 0, (said, out)
    assert b"registers" in said and b"100%" in said
    assert made(tmp_path).display == {"energy_export": "41853.1 kWh"} and "DIFFERS" not in out


def test_a_sunspec_device_is_recorded_model_by_model_and_its_site_file_can_be_made_from_the_replay(
    tmp_path: Path,
) -> None:
    template = library.load("sunspec-inverter", None).map
    device = SimulatedMeter(
        template, clock=lambda: NOON, serial="7E1234AB", started=NOON - timedelta(days=2), sky=Sky(SINGAPORE, seed=1)
    )
    local = ["map", "--local", str(tmp_path)]
    with Server({1: device}) as real:
        done = run("record", "--bus", real.url, "--map", "sunspec-inverter", "--to", str(tmp_path / "out"))
        assert done.return_value == 0, done.exception
        first = run(*local, "sunspec", "site-one", "--bus", real.url, "--unit", "1")
        assert first.exception is None, first.exception
    recording = made(tmp_path / "out")
    assert recording.masked == ("serial_number",) and "7E1234AB" not in text(recording)
    with Server({1: RecordedMeter(recording, template, clock=lambda: NOON)}) as replay:
        assert replay.url != real.url
        second = run(*local, "sunspec", "site-two", "--bus", replay.url, "--unit", "1")
        assert second.exception is None, second.exception
    one, two = (library.load(name, tmp_path).map for name in ("site-one", "site-two"))
    assert one.registers == two.registers and one.identity.match == two.identity.match
    assert [v.words for v in one.vectors if v.quantity == "energy_production"] == [
        v.words for v in two.vectors if v.quantity == "energy_production"
    ]


def test_a_device_that_speaks_no_sunspec_is_no_recording_of_a_template(server: Server, tmp_path: Path) -> None:
    error = told(run("record", "--bus", server.url, "--map", "sunspec-inverter", "--to", str(tmp_path)))
    assert "no SunSpec device" in error.message or "no answer" in error.message or "refused" in error.message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("way", ["--tcp", "--serial"])
def test_a_recording_is_replayed_to_a_master_that_others_wrote(way: str, server: Server, tmp_path: Path) -> None:
    mbpoll = shutil.which("mbpoll")
    if mbpoll is None:
        if os.environ.get("CI") == "true":
            pytest.fail("mbpoll is not installed")
        pytest.skip("mbpoll is not installed; on Debian: apt install mbpoll")
    run("record", "--bus", server.url, "--map", "eastron-sdm630", "--to", str(tmp_path), "--also", "0x0058-0x0063")
    (path,) = tmp_path.rglob("*.toml")
    recording = parse(path.read_text())
    where = ["--tcp", "127.0.0.1:0"] if way == "--tcp" else ["--serial", "--baud", "115200"]
    words = [*HELIOGRAPH, "simulate", "--recording", str(path), *where, "--unit", "7", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            printed = ""
            while True:
                printed += process.stdout.readline()
                try:
                    facts = json.loads(printed)
                    break
                except json.JSONDecodeError:
                    continue
            (end,) = facts["endpoints"]
            to = (
                ["-m", "tcp", "-p", end["url"].rpartition(":")[2], "127.0.0.1"]
                if way == "--tcp"
                else ["-m", "rtu", "-b", "115200", "-P", "none", end["path"]]
            )

            def master(table: str, address: int, count: int) -> str:
                what = ["-a", "7", "-t", table, "-r", str(address), "-c", str(count), "-0", "-1", "-o", "1"]
                done = subprocess.run([mbpoll, *to[:-1], *what, to[-1]], capture_output=True, text=True, check=False)
                return done.stdout + done.stderr

            for piece in recording.pieces:
                said = master("3:hex" if piece.function == "input" else "4:hex", piece.address, len(piece.words))
                found = [int(word, 16) for word in re.findall(r"^\[\d+\]:\s+0x([0-9A-F]+)", said, re.M)]
                assert tuple(found) == piece.words, said
            assert "Illegal data address" in master("3:hex", 0x0058, 12)  # refused then
            assert "Illegal data address" in master("3:hex", 0x2000, 2)  # never asked for
        finally:
            process.terminate()
    assert facts["map"] == "eastron-sdm630" and facts["meters"][0]["serial"] == "12345678"
    config = tmp_path / "config.toml"
    config.write_text(f'[site]\nid = "s"\ntimezone = "Asia/Singapore"\ndata_dir = "{tmp_path}"\n' + facts["config"])
    assert settings.load(config).settings.meter[0].unit == 7
    assert tomllib.loads(facts["config"])["meter"][0]["map"] == "eastron-sdm630"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("map = ", "is not TOML"),
        ('map = "m"', "is no recording: has no 'block'"),
        ('map = "m"\ndigest = "d"\norigin = "guessed"\nunit = 1\nblock = []', "origin is 'guessed'"),
        ('map = "m"\ndigest = "d"\norigin = "captured"\nunit = 999\nblock = []', "unit 999 is none"),
        ('[[block]]\nfunction = "coil"\naddress = 0\nwords = [1]', "function is 'coil'"),
        ('[[block]]\nfunction = "input"\naddress = 65535\nwords = [1, 2]', "address 65535 with 2 registers"),
        ('[[block]]\nfunction = "input"\naddress = 0\nwords = [65536]', "words of input 0x0000"),
        ('[[block]]\nfunction = "input"\naddress = 0\nround = 2\nwords = [1]', "no round 2"),
    ],
)
def test_a_file_that_is_no_recording_is_told(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    if content is not None:
        path.write_text(content)
    error = told(run("simulate", "--recording", str(path), "--tcp", "127.0.0.1:0", "--for", "1ms"))
    assert error.exit_code == 2 and message in error.message and str(path) in error.message
    assert error.hint
