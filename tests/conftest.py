"""The longest files first, so that no worker is left alone with one of them in the end."""

from __future__ import annotations

import pytest

LONGEST = (
    *("test_storm", "test_boot", "test_killed", "test_doctor", "test_each_call", "test_visit", "test_backlog"),
    *("test_secrets", "test_herd", "test_diagnose"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
