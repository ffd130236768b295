"""What REDEX holds already for the days of one inverter (§5.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import Any, Literal

from heliograph.core import figures
from heliograph.core.delivery import DayRow, Missing, ReadBack, Stored, Unknown, Verdict
from heliograph.uplink.http import Answer, Exchange, fault
from heliograph.uplink.redex_answers import READ_BACK, envelope, still, trouble

# Windows of three months, the most that may be asked for (§5.4), in pages of 50 items (§9 rule 24). Windows of 50 days,
# a page each, take as many requests where every day is stored (8 a year), and twice as many where none is: that is how
# a request that got lost is found out.
MONTHS = 3
PAGE_ITEMS = 50
PAGES = 20
# A year; what lies behind is asked about next time.
WINDOWS = 4
# The days may be there under a name that is not known any more: nobody but a person can move them, and to try one again
# reads it back first.
REGISTER = (
    "The platform refuses to be asked about this inverter. Register it there under this name, or ask the platform"
    " about the name; a corrected report_as counts for later days only. Then: heliograph backlog retry METER DAY, which"
    " reads it back first"
)


class Reads:
    def __init__(self, exchange: Callable[..., Exchange], path: str, now: Callable[[], datetime]) -> None:
        self._exchange, self._path, self._now = exchange, path, now

    def ask(self, rows: Sequence[DayRow]) -> Mapping[int, ReadBack]:
        """Rows beyond the first few windows are left out of the answer; they are asked about next time."""
        found: dict[int, ReadBack] = {}
        for window in list(_windows(rows))[:WINDOWS]:
            stored = self._stored(window)
            for row in window:
                if isinstance(stored, Verdict):
                    found[row.id] = Unknown(replace(stored, state="held" if stored.state == "held" else still(row)))
                else:
                    found[row.id] = stored(row)
            if isinstance(stored, Verdict) and stored.pause_all:
                break
        return found

    def _stored(self, rows: Sequence[DayRow]) -> Callable[[DayRow], ReadBack] | Verdict:
        """Everything held for one inverter between the first and the last of these days, or why that is not known."""
        query = {
            "FrequencyType": "Daily",
            "RemoteInvId": rows[0].remote_id,
            "FromDate": rows[0].day.isoformat(),
            "ToDate": rows[-1].day.isoformat(),
            "ItemsPerPage": str(PAGE_ITEMS),
        }
        entries: list[dict[str, Any]] = []
        before: object = None
        whole = False
        for page in range(1, PAGES + 1):
            answer = self._exchange("GET", self._path, query={**query, "CurrentPage": str(page)})
            if not isinstance(answer, Answer):
                return fault(answer)
            if answer.status in (404, 405):
                remedy = "This platform has no read-back: look the days up by hand; retry the missing with --not-there."
                return Verdict("held", f"B{answer.status}", answer.words(), remedy)
            if answer.status in (400, 422):
                return Verdict("held", f"B{answer.status}", f"{answer.words()} ({rows[0].remote_id})", REGISTER)
            said = envelope(answer)
            data = said.get("Data") if said is not None else None
            data = [] if said is not None and data is None else data
            if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
                return trouble(answer, self._now())
            repeated = bool(data) and data == before
            entries += [] if repeated else data
            before = data
            meta = said.get("Meta") if said is not None else None
            if repeated or not data or self._last_page(meta, page, len(entries)):
                total = meta.get("TotalItems") if isinstance(meta, dict) else None
                whole = not isinstance(total, int) or len(entries) >= total
                break
        return lambda row: _match(row, entries, whole)

    @staticmethod
    def _last_page(meta: Any, page: int, items: int) -> bool:
        """Whether Meta says so (§9 rule 24); without it the next page decides."""
        if not isinstance(meta, dict):
            return False
        pages, total = meta.get("TotalPage"), meta.get("TotalItems")
        return (isinstance(pages, int) and page >= pages) or (isinstance(total, int) and items >= total)


def _windows(rows: Sequence[DayRow]) -> Iterator[list[DayRow]]:
    """Each of one inverter: days that were closed before report_as was changed stand under the earlier name."""
    window: list[DayRow] = []
    for row in sorted(rows, key=lambda row: (row.remote_id, row.day)):
        if window and (row.remote_id != window[0].remote_id or row.day > _latest(window[0].day)):
            yield window
            window = []
        window.append(row)
    if window:
        yield window


def _latest(first: date) -> date:
    """The last day that surely lies within three months of the first."""
    years, month = divmod(first.month - 1 + MONTHS, 12)
    return date(first.year + years, month + 1, min(first.day, 28))


def _match(row: DayRow, entries: Sequence[Mapping[str, Any]], whole: bool) -> ReadBack:
    """The entry of this inverter and day. Anything odd about it is for a person, never for a second send."""
    remedy = "Look the day up at the platform; it is not sent again."
    undated = [entry for entry in entries if not isinstance(entry.get("Timestamp"), str)]
    if undated:
        return Unknown(Verdict("held", "B-shape", "the platform's rows carry no Timestamp", remedy))
    ours = [
        entry
        for entry in entries
        if entry["Timestamp"][:10] == row.day.isoformat()
        and entry.get("RemoteInvId", entry.get("RemoteInverterId", row.remote_id)) == row.remote_id
    ]
    if not ours:
        if whole:
            return Missing()
        return Unknown(Verdict(still(row), "B-pages", "the platform did not give all the rows it counts", READ_BACK))
    told = {
        (_figure(entry, "PeriodProductionInKWh"), _figure(entry, "AccumulatedEnergyInKWh", "AccumulatedPowerInKWh"))
        for entry in ours
    }
    if len(told) > 1:
        return Unknown(
            Verdict("held", "B-twice", f"the platform holds {len(ours)} different rows for this day", remedy)
        )
    ((period, total),) = told
    if period == "odd" or total == "odd" or (period is None and total is None):
        return Unknown(Verdict("held", "B-odd", "the platform's figure for this day is not in whole Wh", remedy))
    return Stored(period, total)


def _figure(entry: Mapping[str, Any], *names: str) -> int | Literal["odd"] | None:
    """Wh, None where the entry does not tell, "odd" where it tells what we can never have sent."""
    value = next((entry[name] for name in names if entry.get(name) is not None), None)
    if value is None:
        return None
    wh = figures.wh(value)
    return "odd" if wh is None else wh
