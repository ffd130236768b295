"""The way of the evidence as people go it: status, export, verify; with the gateway running and without it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from heliograph import app, control
from heliograph.cli import heliograph
from heliograph.core.errors import UsageError
from heliograph.daemon import Daemon
from heliograph.work.amend import carry_out
from heliograph.work.attest import attest
from heliograph.work.change import pending
from heliograph.work.close_days import close_days
from tests.fakes import START, FakeClock
from tests.work.test_export import read

CONFIG = """
[site]
id = "sg-0042"
timezone = "Asia/Singapore"
data_dir = "{folder}/data"
[[bus]]
id = "lan"
url = "tcp://127.0.0.1:1"
every = "1h"
store_every = "1h"
[[meter]]
id = "roof"
bus = "lan"
map = "eastron-sdm630"
rated_kw = {rated}
production = "energy_export"
[clock]
trust = "always"
"""


def ask(config: Path, *words: str) -> Result:
    return CliRunner().invoke(heliograph, ["--config", str(config), *words], standalone_mode=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Three closed days of a site that was started by its configuration, twice, with another one in between."""
    path = tmp_path / "config.toml"
    clock, kwh = FakeClock(), 41_230.7
    for rated in (50, 50, 60):
        path.write_text(CONFIG.format(folder=tmp_path, rated=rated))
        site = app.load(path, clock)
        with site.writer() as store:
            for _ in range(25):
                read(store, clock, "roof", 1, kwh)
                kwh += 1.25
                clock.leap(hours=1)
            close_days(site.meters, store, clock, site.rules)
            attest("sg-0042", store, clock, site.sign)
    assert clock.now() == START + timedelta(hours=75)
    return path


def test_a_pack_goes_from_one_computer_to_another(config: Path, tmp_path: Path) -> None:
    seen = json.loads(ask(config, "status", "--json").stdout)["proof"]
    assert seen["entries"] == 6 and seen["checkpoint"] > 0  # two configurations, a beginning, three days
    done = ask(config, "export", str(tmp_path / "site.pack"), "--from", "2026-03-14", "--to", "2026-03-16")
    assert done.exit_code == 0 and seen["fingerprint"] in done.stderr
    config.unlink()  # the other computer has none
    for words in ((), ("--key", seen["key"])):
        report = CliRunner().invoke(heliograph, ["verify", str(tmp_path / "site.pack"), *words], standalone_mode=False)
        assert report.return_value == 0, report.output
        assert "sg-0042  2026-03-14 to 2026-03-16" in report.output and "90.000" in report.output
    told = json.loads(ask(config, "verify", str(tmp_path / "site.pack"), "--json").stdout)
    assert told["sound"] and told["meters"]["roof"]["days"] == 3 and told["decoded"] == 4
    assert told["fingerprint"] == seen["fingerprint"]


def test_a_changed_pack_is_told_with_its_line(config: Path, tmp_path: Path) -> None:
    pack = tmp_path / "site.pack"
    ask(config, "export", str(pack), "--from", "2026-03-14")
    lines = pack.read_bytes().splitlines(keepends=True)
    row = next(number for number, line in enumerate(lines) if b'"period_wh":30000' in line)
    lines[row] = lines[row].replace(b'"period_wh":30000', b'"period_wh":40000')
    pack.write_bytes(b"".join(lines))
    report = ask(config, "verify", str(pack))
    assert report.return_value == 1 and f"! line {row + 1}: entry" in report.output
    assert "40.000 kWh is not what the counter moved" in report.output


def test_somebody_elses_key_is_refused(config: Path, tmp_path: Path) -> None:
    ask(config, "export", str(tmp_path / "site.pack"))
    assert ask(config, "verify", str(tmp_path / "site.pack"), "--key", "0" * 64).return_value == 1
    assert isinstance(ask(config, "verify", str(tmp_path / "site.pack"), "--key", "abc").exception, UsageError)
    assert isinstance(ask(config, "verify", str(tmp_path / "no.pack")).exception, UsageError)
    assert isinstance(ask(config, "export", "--from", "2027-01-01", "--to", "2027-01-02").exception, UsageError)


def test_a_running_gateway_signs_for_whoever_may_ask_it(config: Path, tmp_path: Path) -> None:
    site = app.load(config)
    with site.writer() as store:
        daemon = Daemon(site, store)
        answering = control.Control(site.socket, daemon.answer, daemon.rest)
        try:
            assert ask(config, "export", str(tmp_path / "site.pack"), "--to", "2026-03-16").exit_code == 0
        finally:
            answering.close()
    assert ask(config, "verify", str(tmp_path / "site.pack")).return_value == 0


def test_secrets_are_no_part_of_the_chain(config: Path, tmp_path: Path) -> None:
    text = config.read_text() + '[uplink.redex]\nbase_url = "http://127.0.0.1:9"\n'
    (tmp_path / "token").write_text("very-secret")
    config.write_text(text + f'token = {{ file = "{tmp_path}/token" }}\n')
    with app.load(config).writer() as store:
        last = store.chain.configured()
        assert last is not None and last.content["uplinks"] == {"redex": "http://127.0.0.1:9"}
        assert b"secret" not in b"".join(entry.body for entry in store.chain.entries())


def test_nothing_but_a_piece_of_the_chain_is_signed(config: Path, tmp_path: Path) -> None:
    """Whoever may ask the gateway must not get its signature under a figure of their own."""
    ask(config, "export", str(tmp_path / "site.pack"), "--to", "2026-03-16")
    told = json.loads((tmp_path / "site.pack").read_bytes().splitlines()[-1])
    manifest = {name: value for name, value in told.items() if name not in ("kind", "key", "signature")}
    site = app.load(config)
    with site.writer() as store:
        answer = Daemon(site, store).answer
        assert answer("/api/v1/sign", manifest)["key"] == told["key"]
        for change in ({"head": "0" * 64}, {"previous": "1" * 64}, {"last": manifest["last"] + 1}, {"first": 2}):
            with pytest.raises(UsageError, match="no piece"):
                answer("/api/v1/sign", {**manifest, **change})


def test_a_reading_is_decoded_by_what_was_configured_when_it_was_read(tmp_path: Path) -> None:
    """The byte order is set anew at night, and confirmed: the day that is closed then rests on words of both."""
    path, clock, kwh = tmp_path / "config.toml", FakeClock(), 41_230.7
    for order, hours in (("", 24), ('order = "CDAB"', 25)):
        path.write_text(CONFIG.format(folder=tmp_path, rated=50).replace("[clock]", f"{order}\n[clock]"))
        site = app.load(path, clock)
        with site.writer() as store:
            close_days(site.meters, store, clock, site.rules)
            if (change := pending(site.meters[0], store)) is not None:
                read(store, clock, "roof", 1, kwh, swap=True, doubt=change.doubt)
                wish = {"note": "the meter was set anew", "dry": False}
                carry_out(site.meters[0], "map-changed", wish, store, clock, site.rules)
            for _ in range(hours):
                read(store, clock, "roof", 1, kwh, swap=bool(order))
                kwh += 1.25
                clock.leap(hours=1)
            clock.leap(minutes=30)
    with site.writer() as store:
        close_days(site.meters, store, clock, site.rules)
        assert len(store.days.all()) == 2
    ask(path, "export", str(tmp_path / "site.pack"), "--from", "2026-03-14", "--to", "2026-03-15")
    report = ask(path, "verify", str(tmp_path / "site.pack"))
    assert report.return_value == 0, report.output


def test_a_file_that_was_damaged_after_a_clean_end_is_replaced_at_the_start(config: Path) -> None:
    site = app.load(config)
    site.copy_ledger(forced=True)
    file = site.data_dir / "heliograph.db"
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + bytes(len(whole) - 4096))
    with site.writer() as store:
        assert store.fault is None and len(store.days.all()) == 3
        assert [entry.content["kind"] for entry in store.chain.entries()][-1] == "restored"
        alarms = json.loads(Daemon(site, store).rest("GET", "/api/v1/status").body)["alarms"]
        assert any("took its place" in alarm and "recorded again" in alarm for alarm in alarms)
    assert [path.name for path in (site.data_dir / "quarantine").glob("*/*.db")] == ["heliograph.db"]


def test_what_is_logged_about_a_lost_store_does_not_mix_with_data(config: Path) -> None:
    """In a process of its own, where only the verb's main has said where logs go."""
    site = app.load(config)
    site.copy_ledger(forced=True)
    file = site.data_dir / "heliograph.db"
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + bytes(len(whole) - 4096))
    said = subprocess.run(
        [sys.executable, "-m", "heliograph", "--config", str(config), "backup", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["path"]
    assert "store_lost" in said.stderr
