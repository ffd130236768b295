"""A copy by hand: with a daemon that is asked over its socket, and without one under the same lock."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from heliograph import app, control
from heliograph.cli import heliograph
from heliograph.daemon import Daemon
from tests.cli.test_verbs import site
from tests.fakes import FakeClock

__all__ = ["site"]  # the fixture


def test_backup_copies_with_and_without_a_running_daemon(site: Path) -> None:
    def ask(*words: str) -> str:
        found = CliRunner().invoke(heliograph, ["--config", str(site), *words], standalone_mode=False)
        assert found.exception is None and found.return_value == 0
        return found.stdout

    alone = json.loads(ask("backup", str(site.parent / "alone.db"), "--json"))
    assert alone["last_day"] == "2026-03-15" and alone["bytes"] == Path(alone["path"]).stat().st_size
    loaded = app.load(site, FakeClock())
    with loaded.writer() as store:
        daemon = Daemon(loaded, store)
        answering = control.Control(loaded.socket, daemon.answer, daemon.rest)
        asked = ask("backup")
        answering.close()
    (made,) = (site.parent / "data" / "copies").iterdir()
    assert str(made) in asked and "last closed day 2026-03-15" in asked and "sha256" in asked
