"""What holds for every run: Ctrl-C, and the longest files first, so that no worker is left alone with one of them."""

from __future__ import annotations

import signal
from functools import cache

import pytest

from heliograph import library, toml_lines

LONGEST = (
    *("test_storm", "test_boot", "test_killed", "test_doctor", "test_each_call", "test_visit", "test_backlog"),
    *("test_secrets", "test_herd", "test_diagnose"),
)

# Whoever starts the tests in the background may have Ctrl-C ignored; programs that tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Where the keys of a map stand is the same in each test, and finding that takes longest of all in reading one.
pytest.MonkeyPatch().setattr(library, "lines", cache(toml_lines.lines))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
