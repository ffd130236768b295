"""What the stand-in for REDEX asks of a body: shape, then pairs, days and running totals. Pure.

Energies are kept in tenths of Wh, because the legacy dialect has four decimals.
"""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from heliograph.rehearsal.sandbox_exchange import is_text, shorten

_VALUE = re.compile(r"(0|[1-9][0-9]{0,14})(?:\.([0-9]{1,4}))?", re.ASCII)
_NUMBER = re.compile(r"[+-]?[0-9]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?", re.ASCII)
_ONE_DAY = timedelta(days=1)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Inverter:
    """An inverter of the group. `connected`: no day before it is taken. `capacity_kw`: no day above 25 h of it."""

    remote_id: str
    capacity_kw: float | None = None
    connected: date | None = None


class Entry(NamedTuple):
    """One day in tenths of Wh."""

    period: int
    total: int


Record = tuple[str, date, Entry]


@dataclass(slots=True)
class Series:
    """What is known of one inverter: stored or still in processing. `order` is sorted."""

    known: dict[date, Entry] = field(default_factory=dict)
    order: list[date] = field(default_factory=list)
    stored: dict[date, Entry] = field(default_factory=dict)

    def learn(self, day: date, entry: Entry) -> None:
        self.known[day] = entry
        if not self.order or day > self.order[-1]:
            self.order.append(day)
        else:
            insort(self.order, day)

    def forget(self, day: date) -> None:
        del self.known[day]
        self.order.pop(bisect_left(self.order, day))


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken rule in a body: `key` names the field for the answer, `about` the piece for the log."""

    rule: str
    key: str
    text: str
    about: str


@dataclass(frozen=True, slots=True)
class Dialect:
    accumulated: str
    decimals: int


GROUPED = Dialect("AccumulatedEnergyInKWh", 3)
LEGACY = Dialect("AccumulatedPowerInKWh", 4)
_TOTAL = GROUPED.accumulated


def read_batch(body: dict[str, Any]) -> tuple[list[Record], list[Problem]]:
    problems = member_problems(body, {"Devices"}, "", shorten(list(body)))
    devices = body.get("Devices")
    if problems:
        return [], problems
    if not isinstance(devices, list) or not devices:
        return [], [Problem("shape", "Devices", "Devices is no list with an entry", shorten(devices))]
    records: list[Record] = []
    seen: set[str] = set()
    for index, device in enumerate(devices):
        place = f"Devices[{index}]"
        if not isinstance(device, dict):
            problems.append(Problem("shape", place, f"{place} is no object", shorten(device)))
            continue
        more, wrong = read_single(device, GROUPED, place + ".")
        records += more
        problems += wrong
        remote_id = device.get("RemoteInvId")
        if is_text(remote_id) and remote_id in seen:
            text = f"{remote_id} has more than one entry in Devices"
            problems.append(Problem("inverter-twice", place + ".RemoteInvId", text, remote_id))
        seen.add(str(remote_id))
    return records, problems


def read_single(body: dict[str, Any], dialect: Dialect, place: str) -> tuple[list[Record], list[Problem]]:
    expected = {"RemoteInvId", "Data"} | ({"FrequencyType"} if dialect is LEGACY else set())
    problems = member_problems(body, expected, place, shorten(list(body)))
    if dialect is LEGACY and body.get("FrequencyType", "Daily") != "Daily":
        problems.append(Problem("shape", place + "FrequencyType", "FrequencyType is Daily", shorten(list(body))))
    remote_id, data = body.get("RemoteInvId"), body.get("Data")
    if not is_text(remote_id) or not 1 <= len(remote_id) <= 100:
        text = "RemoteInvId is no text of 1 to 100 characters"
        problems.append(Problem("shape", place + "RemoteInvId", text, shorten(remote_id)))
    if not isinstance(data, list) or not data:
        problems.append(Problem("shape", place + "Data", "Data is no list with a record", shorten(remote_id)))
    if problems or not isinstance(data, list) or not is_text(remote_id):
        return [], problems
    members = {"Timestamp", "PeriodProductionInKWh", dialect.accumulated}
    records: list[Record] = []
    for index, item in enumerate(data):
        if not isinstance(item, dict) or item.keys() != members:
            at = f"{place}Data[{index}]."
            if isinstance(item, dict):
                problems += member_problems(item, members, at, f"{remote_id} {shorten(item)}")
            else:
                problems.append(Problem("shape", at[:-1], f"{at[:-1]} is no object", shorten(item)))
            continue
        day = read_day(item["Timestamp"])
        period = read_value(item["PeriodProductionInKWh"], dialect.decimals)
        total = read_value(item[dialect.accumulated], dialect.decimals)
        if day is not None and isinstance(period, int) and isinstance(total, int):
            records.append((remote_id, day, Entry(period, total)))
            continue
        at, about = f"{place}Data[{index}].", remote_id + " " + shorten(item)
        if day is None:
            problems.append(Problem("timestamp", at + "Timestamp", "Timestamp is no date YYYY-MM-DD", about))
        for name, value in (("PeriodProductionInKWh", period), (dialect.accumulated, total)):
            if isinstance(value, tuple):
                problems.append(Problem(value[0], at + name, f"{name} {value[1]}", about))
    return records, problems


def member_problems(body: Mapping[str, Any], expected: set[str], place: str, about: str) -> list[Problem]:
    problems = [
        Problem("unknown-member", place + name, f"unknown member {name}", about)
        for name in body
        if name not in expected
    ]
    missing = sorted(expected - body.keys())
    return problems + [Problem("shape", place + name, f"{name} is missing", about) for name in missing]


@lru_cache(maxsize=8192)
def _date(text: str) -> date | None:
    if not _DATE.fullmatch(text):
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def read_day(value: object) -> date | None:
    """A calendar date written YYYY-MM-DD; fromisoformat alone would also take 20230501 and 2023-W18-1."""
    return _date(value) if is_text(value) else None


def read_value(value: object, decimals: int) -> int | tuple[str, str]:
    """Kilowatt-hours as tenths of Wh, or the rule that the text breaks and in which way."""
    if not isinstance(value, str):
        return ("shape", "is neither a text nor a number")
    if (match := _VALUE.fullmatch(value)) and len(match[2] or "") <= decimals:
        return int(match[1]) * 10_000 + int((match[2] or "0").ljust(4, "0"))
    if not value or not _NUMBER.fullmatch(value) or not any(map(str.isdigit, value)):
        return ("shape", "is no number")
    if value.startswith("-"):
        return ("negative", "is negative")
    fraction = value.partition(".")[2]
    if fraction.isdigit() and len(fraction) > decimals:
        return ("decimals", f"has more than {decimals} decimals")
    return ("notation", "is not in plain notation")


def day_problems(
    remote_id: str, days: list[tuple[date, Entry]], today: date, inverter: Inverter | None
) -> list[Problem]:
    problems = []
    connected = inverter.connected if inverter else None
    most = int(inverter.capacity_kw * 25 * 10_000) if inverter and inverter.capacity_kw else None
    for day, entry in days:
        if day > today:
            problems.append(Problem("future", "Timestamp", f"{day} lies in the future", f"{remote_id} {day}"))
        elif day == today:
            problems.append(Problem("incomplete", "Timestamp", f"{day} is not over yet", f"{remote_id} {day}"))
        if connected and day < connected:
            text = f"{day} lies before the grid connection on {connected}"
            problems.append(Problem("before-connection", "Timestamp", text, f"{remote_id} {day}"))
        if most is not None and entry.period > most:
            text = f"{entry.period / 10_000:g} kWh on {day} is more than the capacity can produce"
            problems.append(Problem("capacity", "PeriodProductionInKWh", text, f"{remote_id} {day}"))
    return problems


def sum_problems(remote_id: str, days: list[tuple[date, Entry]], series: Series | None) -> list[Problem]:
    """Pairs are sent once; the total is the one before plus the period, and never falls. `days` is sorted."""
    problems = []
    before: tuple[date, Entry] | None = None
    for day, entry in days:
        broken = _first_broken(remote_id, day, entry, before, series)
        if broken:
            about = f"{remote_id} {day} {entry.period / 10_000:.4f} {entry.total / 10_000:.4f}"
            key = "Timestamp" if broken[0] in ("pair-twice", "pair-stored", "pair-pending", "overwrite") else _TOTAL
            problems.append(Problem(broken[0], key, broken[1], about))
        before = (day, entry)
    return problems


def _first_broken(
    remote_id: str, day: date, entry: Entry, before: tuple[date, Entry] | None, series: Series | None
) -> tuple[str, str] | None:
    """Rule and words, or None. `before` is the day before it in the same request."""
    if before and before[0] == day:
        return "pair-twice", f"{remote_id} {day} stands twice in the request"
    if series and (known := series.known.get(day)):
        stored = day in series.stored
        where = "is stored already" if stored else "is in processing already"
        if known != entry:
            return "overwrite", f"{remote_id} {day} {where}, with another value"
        return "pair-stored" if stored else "pair-pending", f"{remote_id} {day} {where}, with the same value"
    if entry.total < entry.period:
        return "total", f"{day}: the total is below the day's production"
    later = None
    if series:
        at = bisect_left(series.order, day)
        if at and (before is None or series.order[at - 1] > before[0]):
            before = (series.order[at - 1], series.known[series.order[at - 1]])
        if at < len(series.order):
            later = (series.order[at], series.known[series.order[at]])
    return (before and _misfit(before, (day, entry))) or (later and _misfit((day, entry), later)) or None


def _misfit(earlier: tuple[date, Entry], later: tuple[date, Entry]) -> tuple[str, str] | None:
    room = later[1].total - later[1].period - earlier[1].total
    if later[1].total < earlier[1].total:
        return "falls", f"the total falls between {earlier[0]} and {later[0]}"
    if room < 0 or (room and later[0] - earlier[0] == _ONE_DAY):
        return "total", f"{later[0]}: the total is not that of {earlier[0]} plus the production since"
    return None
