"""A store with one meter, "roof", whose readings a test writes down by hand; hours are counted from START."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from heliograph.core.readings import Moment, Reading, Source
from heliograph.store import Store
from tests.fakes import START, a_meter

METER = a_meter()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.writer(tmp_path)
    opened.readings.begin("site", "Asia/Singapore", "boot-1", START)
    opened.readings.know_map(METER.map_digest, METER.map.name, "")
    opened.readings.know_meter("roof", METER.production)
    yield opened
    opened.close()


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def read(store: Store, hours: float, wh: int, doubt: str = "") -> None:
    source = Source(1, "input", 0x4A, 2, METER.map_digest)
    moment = Moment(at(hours), "boot-1", hours * 3600, True)
    store.readings.add([Reading("roof", moment, wh, {}, (0, 0), source, doubt)])
