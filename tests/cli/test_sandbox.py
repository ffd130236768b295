"""heliograph sandbox: what it prints, what it takes, how it ends."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result

from heliograph.cli.sandbox import TOKEN_ENV, command
from heliograph.core.errors import UsageError
from heliograph.rehearsal.sandbox_faults import KINDS


def run(*arguments: str) -> Result:
    usual = ["--listen", "127.0.0.1:0", "--for", "0s"]
    return CliRunner().invoke(command, [*usual, *arguments], standalone_mode=False, env={TOKEN_ENV: ""})


def test_it_prints_a_configuration_to_paste() -> None:
    result = run()
    assert result.exit_code == 0 and result.return_value == 0
    uplinks = tomllib.loads(result.stdout)["uplink"]
    assert uplinks["drec"]["base_url"] == uplinks["redex"]["base_url"] + "/api"
    assert uplinks["redex"]["token"] == {"env": TOKEN_ENV}
    assert f"# export {TOKEN_ENV}=ey" in result.stdout
    assert "nobody asked" in result.stderr


def test_a_missing_token_file_is_written_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "redex.token"
    first = run("--token-file", str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    token = path.read_text().strip()
    assert token.count(".") == 2
    assert token not in first.stdout + first.stderr
    assert tomllib.loads(first.stdout)["uplink"]["redex"]["token"] == {"file": str(path)}
    run("--token-file", str(path))
    assert path.read_text().strip() == token


def test_a_given_token_is_not_repeated() -> None:
    result = run("--token", "not-to-be-seen", "--json")
    assert "not-to-be-seen" not in result.output
    assert json.loads(result.stdout)["token"] is None


def test_json_tells_the_same() -> None:
    facts = json.loads(run("--json", "--fault", "html=0.05").stdout)
    assert facts["drec"] == facts["url"] + "/api"
    assert facts["faults"] == ["html=0.05"]
    assert tomllib.loads(facts["config"])["uplink"]["redex"]["base_url"] == facts["redex"]


def test_the_kinds_of_fault_are_listed() -> None:
    assert [line.split()[0] for line in run("--list-faults").stdout.splitlines()] == list(KINDS)
    assert json.loads(run("--list-faults", "--json").stdout).keys() == KINDS.keys()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--listen", "8600"], "HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], "HOST:PORT"),
        (["--fault", "htlm=0.1"], "unknown fault"),
        (["--timezone", "Asia/Singapur"], "no time zone"),
        (["--processing-delay", "soon"], "--processing-delay soon"),
        (["--for", "5"], "--for 5"),
        (["--device", "roof"], "names no platform"),
        (["--device", "redex:roof,kW=5"], "unknown key kW"),
        (["--device", "drec:roof,created=may"], "does not fit created"),
        (["--token", "a", "--token-file", "b"], "two tokens"),
        (["--token-file", "/dev/null/x"], "--token-file /dev/null/x"),
        (["--keep", "/dev/null/x"], "cannot keep"),
    ],
)
def test_what_cannot_be_used_is_explained(arguments: list[str], told: str) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, UsageError)
    assert told in str(result.exception)
    assert result.exception.hint


def test_a_port_in_use_is_explained() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert isinstance(result.exception, UsageError)
    assert "cannot listen" in str(result.exception)


def _ask(url: str, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=20)
    headers = {"Authorization": "Bearer t0", "Content-Type": "application/json"}
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


@pytest.mark.parametrize(("body", "status", "code"), [(b"{", 400, 1), (None, 201, 0)])
def test_it_runs_until_terminated_and_says_whether_a_rule_was_broken(
    tmp_path: Path, body: bytes | None, status: int, code: int
) -> None:
    keep = tmp_path / "kept.jsonl"
    arguments = ["--listen", "127.0.0.1:0", "--json", "--log", "--keep", str(keep), "--device", "redex:roof,kw=50"]
    program = "from heliograph.cli.sandbox import command; import sys; sys.exit(command(standalone_mode=False))"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {TOKEN_ENV: "t0"},
    )
    try:
        assert process.stdout is not None
        facts = ""
        while "\n}" not in facts:
            facts += process.stdout.readline()
        url = json.loads(facts)["url"]
        day = {"Timestamp": "2026-01-10", "PeriodProductionInKWh": "1.000", "AccumulatedEnergyInKWh": "1.000"}
        good = json.dumps({"RemoteInvId": "roof", "Data": [day]}).encode()
        assert _ask(url, "POST", "/public/v2/generation-datas", good if body is None else body)[0] == status
        assert _ask(url, "GET", "/_sandbox/state")[0] == 200
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code, told
    assert "1 redex.send" in told
    assert ("rule redex json" in told) == bool(code)
    assert "t0" not in told
    assert bool(keep.read_text()) == (body is None)
