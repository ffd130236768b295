"""Both platforms' logins from a configuration, over days in which tokens expire and are revoked."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliograph import app
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.work.deliver import Pace, deliver
from tests.fakes import SINGAPORE, FakeClock
from tests.work.test_deliver import make_store

CONFIG = """
[site]
id = "s"
timezone = "Asia/Singapore"
data_dir = "{folder}/data"
[[bus]]
id = "lan"
url = "tcp://127.0.0.1:1"
[[meter]]
id = "m0"
bus = "lan"
map = "eastron-sdm630"
rated_kw = 50
report_as = {{ redex = "STR1", drec = "roof" }}
[uplink.redex]
base_url = "{url}"
login = {{ api_key = {{ file = "{folder}/key" }}, client_id = {{ file = "{folder}/id" }}, client_secret = {{ file = "{folder}/secret" }} }}
[uplink.drec]
base_url = "{url}/api"
login = {{ username = {{ file = "{folder}/user" }}, password = {{ env = "DREC_PASSWORD" }} }}
"""  # noqa: E501 (one line in the file as a person would write it)


def test_tokens_are_fetched_renewed_and_fetched_again_when_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    make_store(tmp_path / "data", clock, meters=1, days=6).close()
    for name, text in (
        ("key", "sandbox-api-key"),
        ("id", "sandbox-client"),
        ("secret", "sandbox-client-secret"),
        ("user", "gateway@example.org"),
    ):
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setenv("DREC_PASSWORD", "sandbox1")
    with Sandbox(now=clock.now, timezone=SINGAPORE.key) as platform:
        (tmp_path / "secret").write_text(platform.redex.credentials["ClientSecret"])
        config = tmp_path / "config.toml"
        config.write_text(CONFIG.format(folder=tmp_path, url=platform.url))
        site = app.load(config, clock, secrets="must be there")
        with site.writer() as store:
            uplinks = site.uplinks()
            paces = {uplink.name: Pace(clock) for uplink in uplinks}
            for round in range(200):
                if round == 3:
                    platform.revoke()
                for uplink in uplinks:
                    deliver(uplink, store, clock, paces[uplink.name], lambda: 0.5)
                clock.leap(minutes=10)
            counts = store.outbox.counts()
            assert counts["redex"] == counts["drec"] == {"confirmed": 6}
            total = sum(day.period_wh for day in store.days.all("m0"))
            assert platform.total_wh("redex", "STR1") == platform.total_wh("drec", "roof") == total
            assert [str(one) for one in platform.violations] == []
            for uplink in uplinks:
                uplink.close()
    _no_secret_is_kept(tmp_path)


def _no_secret_is_kept(folder: Path) -> None:
    held = b"".join(path.read_bytes() for path in (folder / "data").iterdir())
    for secret in (b"sandbox-api-key", b"sandbox1", b"sandbox-client-secret", b"eyJ"):
        assert secret not in held
