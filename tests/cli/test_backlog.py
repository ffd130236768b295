"""What waits, why, since when, and what a person can do about it: as it is shown, asked and done."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from heliograph import app
from heliograph.cli import heliograph
from heliograph.core.delivery import Parcel, Verdict
from heliograph.core.errors import HeliographError
from heliograph.core.readings import Moment, Reading
from heliograph.daemon import Daemon
from heliograph.settings import DrecSettings, RedexSettings
from heliograph.store import Store
from heliograph.uplink.drec import Drec
from heliograph.uplink.redex import Redex
from heliograph.work.close_days import close_days
from tests.fakes import RULES, START, FakeClock

CONFIG = """
[site]
id = "sg-0042"
timezone = "Asia/Singapore"
data_dir = "{folder}/data"
[[bus]]
id = "lan"
url = "tcp://127.0.0.1:1"
[[meter]]
id = "roof"
bus = "lan"
map = "eastron-sdm630"
rated_kw = 50
report_as = {{ redex = "STR1", drec = "SG-1" }}
[uplink.redex]
base_url = "http://127.0.0.1:1"
spread = "0s"
token = {{ file = "{folder}/token" }}
[uplink.drec]
base_url = "http://127.0.0.1:1"
spread = "0s"
token = {{ file = "{folder}/token" }}
[clock]
trust = "always"
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Three days for two platforms; both refuse the first one, in the words that stand in the row."""
    (tmp_path / "token").write_text("token")
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(folder=tmp_path))
    (tmp_path / "data").mkdir()
    clock, (meter,) = FakeClock(), app.load(config).meters
    store = Store.writer(tmp_path / "data")
    store.readings.begin("sg-0042", "Asia/Singapore", "boot-1", START)
    store.readings.know_meter("roof", "energy_export")
    for day, wh in enumerate((4_123_000, 4_164_237, 4_193_000, 4_203_000)):
        store.readings.add([Reading("roof", Moment(START + timedelta(days=day), "boot-1", day * 86_400, True), wh)])
    clock.at = START + timedelta(days=3, hours=1)
    close_days([meter], store, clock, RULES)
    for uplink in ("redex", "drec"):
        (row, *_) = store.outbox.candidates(uplink, clock.now(), ordered=True, limit=1)
        store.outbox.claim(uplink, Parcel("/x", b"{}", (row,)), clock.now(), clock.now())
        refused = Verdict("rejected", "R422", "no such device", remedy="Register it.")
        store.outbox.settle([(row.id, refused, clock.now())], clock.now())
    store.close()
    return config


Ask = Callable[..., Result]


@pytest.fixture
def ask(site: Path) -> Ask:
    def run(*words: str) -> Result:
        return CliRunner().invoke(heliograph, ["--config", str(site), *words], standalone_mode=False)

    return run


def code(result: Result) -> int | None:
    if isinstance(result.exception, HeliographError):
        return result.exception.exit_code
    if result.exception is not None:
        raise result.exception
    value: int | None = result.return_value
    return value


def test_settings_say_of_a_platform_what_its_uplink_says() -> None:
    assert (DrecSettings.ordered, RedexSettings.ordered) == (Drec.ordered, Redex.ordered) == (True, False)


def test_backlog_says_what_waits_and_which_device_waits_for_a_decision(ask: Ask) -> None:
    found = ask("backlog")
    assert code(found) == 1
    assert "R422 no such device" in found.stdout and "Register it." in found.stdout
    assert "heliograph backlog retry roof 2026-03-14 --uplink redex" in found.stdout
    (loud,) = [line for line in found.stdout.splitlines() if line.startswith("!")]
    assert (
        "drec: roof 2026-03-14 has to be decided first, 2 later days wait behind it: rejected, R422 no such device"
        in loud
    )
    assert "heliograph backlog set-aside roof 2026-03-14 --uplink drec" in loud
    assert found.stdout.count("waits behind 2026-03-14") == 2 and found.stdout.count("waits for its turn") == 2
    rows = json.loads(ask("backlog", "--json").stdout)
    assert [row["behind"] for row in rows] == [None, "2026-03-14", "2026-03-14", None, None, None]
    assert [(row["uplink"], row["state"], row["blocks"]) for row in rows] == [
        ("drec", "rejected", 2),
        ("drec", "due", 0),
        ("drec", "due", 0),
        ("redex", "rejected", 0),
        ("redex", "due", 0),
        ("redex", "due", 0),
    ]
    assert rows[0]["since"] == rows[0]["attempts"][0]["at"] == "2026-03-16T17:00:00Z"
    assert [row["uplink"] for row in json.loads(ask("backlog", "roof", "--uplink", "redex", "--json").stdout)] == [
        "redex"
    ] * 3


def test_a_day_shows_all_that_was_tried_with_it(ask: Ask) -> None:
    shown = ask("backlog", "roof", "2026-03-14").stdout
    assert "redex as STR1, what was tried:" in shown
    line = "2026-03-16 17:00:00 UTC: sent (request 1), R422: no such device; rejected from there on"
    assert line in shown and line in ask("explain", "roof", "2026-03-14").stdout
    told = json.loads(ask("explain", "roof", "2026-03-14", "--json").stdout)
    assert [one["attempts"][0]["rule"] for one in told["submissions"]] == ["R422", "R422"]
    assert line in ask("explain", "roof", "2026-03-14", "--html").stdout


def test_nothing_is_decided_where_nobody_was_asked(ask: Ask) -> None:
    found = ask("backlog", "set-aside", "roof", "2026-03-14", "--uplink", "drec")
    assert code(found) == 2
    assert "roof 2026-03-14 at drec: 41,237 Wh, rejected R422: not delivered" in found.stderr
    assert "part of no later Delta" in found.stderr and "In all 41,237 Wh." in found.stderr
    found = ask("backlog", "retry", "roof", "2026-03-14")
    assert "read back first, and sent again only if" in found.stderr and "In all 82,474 Wh." in found.stderr
    assert "part of no later Delta" not in ask("backlog", "set-aside", "roof", "2026-03-14", "--uplink", "redex").stderr
    assert [row["state"] for row in json.loads(ask("backlog", "--json").stdout)].count("rejected") == 2


def test_a_decision_is_carried_out_kept_and_copied(ask: Ask, site: Path) -> None:
    words = ("backlog", "set-aside", "roof", "2026-03-14", "--uplink", "drec", "--because", "agreed with Mei", "--yes")
    assert code(ask(*words)) == 0
    assert code(ask("backlog", "retry", "roof", "2026-03-14", "--uplink", "redex", "--yes", "--json")) == 0
    shown = ask("backlog")
    assert code(shown) == 0  # nothing needs a person any more
    assert "set aside" in shown.stdout and "agreed with Mei" in shown.stdout and "!" not in shown.stdout
    assert "a person decided, aside/person: agreed with Mei" in ask("explain", "roof", "2026-03-14").stdout
    assert len(list((site.parent / "data" / "copies").glob("*-ledger.db"))) == 2
    refused = ask("backlog", "retry", "roof", "2026-03-14", "--uplink", "redex", "--yes")
    assert code(refused) == 2 and "never sent again on a wish" in str(refused.exception)


def test_a_day_that_only_waits_at_another_platform_is_not_let_go_with_it(ask: Ask) -> None:
    assert code(ask("backlog", "retry", "roof", "2026-03-14", "--uplink", "redex", "--yes")) == 0
    assert code(ask("backlog", "set-aside", "roof", "2026-03-15", "--yes")) == 2  # due at both
    assert code(ask("backlog", "set-aside", "roof", "2026-03-15", "--uplink", "redex", "--yes")) == 0
    assert code(ask("backlog", "retry", "roof", "2026-03-15", "--uplink", "redex", "--yes")) == 0
    found = ask("backlog", "set-aside", "roof", "2026-03-14..2026-03-15", "--yes")
    assert code(found) == 2 and "--uplink drec" in str(found.exception)
    rows = {(row["uplink"], row["day"]): row["state"] for row in json.loads(ask("backlog", "--json").stdout)}
    assert {state for (_, day), state in rows.items() if day == "2026-03-15"} == {"due"}


def test_without_a_platform_only_what_was_refused_is_let_go(ask: Ask, site: Path) -> None:
    with app.load(site).writer() as store:
        (one, *_) = store.outbox.rows("redex", "roof", date(2026, 3, 14), date(2026, 3, 14))
        store._connection.execute("UPDATE outbox SET state = 'due', rule = '' WHERE id = ?", (one.id,))
    done = ask("backlog", "set-aside", "roof", "2026-03-14", "--yes", "--json")
    assert code(done) == 0
    assert [day["uplink"] for day in json.loads(done.stdout)["days"]] == ["drec"]


def test_where_order_is_the_rule_it_is_told_what_a_day_waits_for(ask: Ask, site: Path) -> None:
    assert code(ask("backlog", "set-aside", "roof", "2026-03-14", "--uplink", "drec", "--yes")) == 0
    shown = ask("backlog", "--uplink", "drec").stdout
    assert shown.count("with the next round") == 1 and shown.count("together with the next day that has energy") == 1
    with app.load(site).writer() as store:
        (first,) = store.outbox.rows("drec", "roof", date(2026, 3, 15), date(2026, 3, 15))
        store._connection.execute("UPDATE outbox SET due = ? WHERE id = ?", (2**52, first.id))
    for words in ((), ("roof", "2026-03-16")):
        shown = ask("backlog", *words, "--uplink", "drec").stdout
        assert "waits behind 2026-03-15" in shown and "after 2026-03-15, which is not through yet" in shown
        assert "with the next round" not in shown


def test_the_running_daemon_decides_and_copies(site: Path) -> None:
    """What the control socket answers, without the socket."""
    one = app.load(site)
    wish = {"first": "2026-03-14", "last": "2026-03-14", "uplink": "drec", "because": "", "dry": True}
    with one.writer() as store:
        running = Daemon(one, store)
        planned = running.answer("/api/v1/meters/roof/set-aside", wish)
        assert planned["days"][0]["becomes"] == "rejected" and not running._scheduler.get_jobs()
        running.answer("/api/v1/meters/roof/set-aside", {**wish, "dry": False})
        assert [row["rule"] for row in store.outbox.backlog("drec")] == ["aside/person", "", ""]
        assert [job.args[0] for job in running._scheduler.get_jobs()] == ["copy now"]
        with pytest.raises(HeliographError, match="set aside already"):
            running.answer("/api/v1/meters/roof/set-aside", wish)
        running._scheduler.remove_all_jobs()
        for uplink in running.uplinks:
            uplink.close()
