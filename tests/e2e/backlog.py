"""A site with closed days that no platform has seen, as months without a network leave it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from heliograph.core import daily
from heliograph.core.readings import Moment, Reading
from heliograph.core.site import Report
from heliograph.store import Store
from tests.fakes import SINGAPORE

METER = """
[[meter]]
id = "i{number}"
bus = "b{bus}"
unit = {unit}
map = "eastron-sdm630"
rated_kw = 10
report_as = {{ {reports} }}
"""
PLATFORM = """
[uplink.{name}]
base_url = "{url}"
spread = "0s"
{more}
"""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Meters i0, i1, ... with `days` closed days each from `first` on; `period_wh` by meter and day."""

    meters: int
    days: int
    first: date
    period_wh: Callable[[int, int], int]
    platforms: tuple[str, ...] = ("redex",)

    @property
    def end(self) -> datetime:
        """When the last day was over."""
        return daily.start_of(self.first + timedelta(days=self.days), SINGAPORE)

    def name(self, platform: str, number: int) -> str:
        """What the platform calls a meter."""
        return f"{'INV' if platform == 'redex' else 'plant'}-{number}"

    def fill(self, data: Path, now: datetime) -> None:
        """A store as closing day after day would have left it, written in one go."""
        data.mkdir()
        store = Store.writer(data)
        store.readings.begin("killed", SINGAPORE.key, "boot-1", now)
        connection = store._connection
        borders, days = [], []
        for number in range(self.meters):
            store.readings.know_meter(f"i{number}", "energy_export")
            start = daily.start_of(self.first, SINGAPORE)
            store.readings.add([Reading(f"i{number}", Moment(start, "boot-1", 0, True), 1_000_000)])
            meter = store.readings.meter_id(f"i{number}")
            total = 0
            base = number * (self.days + 1) + 1
            for day in range(self.days + 1):
                at = daily.start_of(self.first + timedelta(days=day), SINGAPORE)
                micros = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
                borders.append((base + day, meter, micros, 1_000_000 + total, total, "read", number + 1, None))
                if day < self.days:
                    period = self.period_wh(number, day)
                    total += period
                    name = (self.first + timedelta(days=day)).isoformat()
                    days.append((meter, name, base + day, base + day + 1, period, total, 0, micros, "0.1.0"))
        with connection.writing():
            connection.execute_many("INSERT INTO border VALUES (?, ?, ?, ?, ?, ?, ?, ?)", borders)
            connection.execute_many(
                "INSERT INTO day (meter, day, opening, closing, period_wh, total_wh, estimated, closed_at, software)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                days,
            )
        with connection.writing():
            for number in range(self.meters):
                for platform in self.platforms:
                    store.outbox.queue(f"i{number}", Report(platform, self.name(platform, number)), now)
        store.days.carry_over(now)
        store.close()

    def configure(self, folder: Path, platforms: dict[str, tuple[str, str]], every: str = "1h") -> Path:
        """A configuration with (address, more lines) of each platform.

        The meters stand behind addresses where nobody answers: only their backlog matters here.
        """
        text = f'[site]\nid = "backlog"\ntimezone = "{SINGAPORE.key}"\ndata_dir = "{folder}/data"\n'
        text += '[clock]\ntrust = "always"\n'
        for bus in range(-(-self.meters // 200)):
            text += f'[[bus]]\nid = "b{bus}"\nurl = "tcp://127.0.0.1:{1 + bus}"\nevery = "{every}"\n'
        for number in range(self.meters):
            reports = ", ".join(f'{platform} = "{self.name(platform, number)}"' for platform in self.platforms)
            text += METER.format(number=number, bus=number // 200, unit=number % 200 + 1, reports=reports)
        for name, (url, more) in platforms.items():
            text += PLATFORM.format(name=name, url=url, more=more)
        path = folder / "config.toml"
        path.write_text(text, encoding="utf-8")
        return path
