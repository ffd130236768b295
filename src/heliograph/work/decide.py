"""What waits on its way to a platform, and what a person decides about it: to try a day again, or to let it go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any

from heliograph.core import delivery
from heliograph.core.delivery import HISTORY, Blocked, DayRow, Decision, Standing
from heliograph.core.errors import UsageError
from heliograph.core.site import Meter, Report
from heliograph.store import Store

MOST_WORDS = 300
# Stretches of days that an alarm names.
MOST_RUNS = 3


def waiting(
    meters: Sequence[Meter], store: Store, uplink: str | None, meter: str | None, day: date | None, now: datetime
) -> tuple[list[dict[str, Any]], list[Blocked]]:
    """Rows that no platform has confirmed, with all that was tried, and the devices that wait for a decision.

    With a day its rows are told also when they are confirmed.
    """
    if day is not None:
        rows = store.outbox.shown(uplink, meter, day)
    else:
        rows = [row for row in store.outbox.backlog(uplink) if meter in (None, row["meter"])]
    blocked = [one for one in _blocked(meters, store, uplink) if meter in (None, one.meter)]
    return explained(rows, meters, store, blocked, now), blocked


def waiting_page(
    meters: Sequence[Meter],
    store: Store,
    uplink: str | None,
    meter: str | None,
    day: date | None,
    now: datetime,
    *,
    after: int,
    most: int,
) -> list[dict[str, Any]]:
    """The first of those rows behind the row of a number, in the order in which they were queued."""
    rows = store.outbox.page(uplink, meter, day, after, most)
    return explained(rows, meters, store, _blocked(meters, store, uplink), now) if rows else []


def _ordered(meters: Sequence[Meter]) -> set[str]:
    return {report.uplink for one in meters for report in one.reports if report.ordered}


def _blocked(meters: Sequence[Meter], store: Store, uplink: str | None) -> list[Blocked]:
    ordered = _ordered(meters)
    return [
        one for name in sorted(ordered if uplink is None else ordered & {uplink}) for one in store.outbox.blocked(name)
    ]


def explained(
    rows: list[dict[str, Any]], meters: Sequence[Meter], store: Store, blocked: Sequence[Blocked], now: datetime
) -> list[dict[str, Any]]:
    """The rows with what was tried, since when they are so, and what they wait for."""
    ordered = _ordered(meters)
    stops = {(one.uplink, one.meter): one for one in blocked}
    firsts = {name: store.outbox.firsts(name, now) for name in ordered}
    tried = store.outbox.attempts.of(row["row"] for row in rows)
    for row in rows:
        attempts = tried.get(row["row"], [])
        same = [one["at"] for one in attempts if (one["state"], one["rule"]) == (row["state"], row["rule"])]
        row["aside"] = delivery.is_aside(row["state"], row["rule"])
        row["since"] = same[-1] if same else row["changed"]
        stop = stops.get((row["uplink"], row["meter"]))
        row["blocks"] = stop.later if stop is not None and stop.day == row["day"] else 0
        waits = stop is not None and stop.day < row["day"] and row["state"] == "due"
        row["behind"] = stop.day if stop is not None and waits and not row["rule"].startswith(HISTORY) else None
        row["attempts"] = attempts
        first, stops_at = firsts.get(row["uplink"], {}).get(row["meter"], (None, None))
        in_order = row["state"] == "due" and row["uplink"] in ordered and not row["rule"].startswith(HISTORY)
        row["after"] = stops_at if in_order and stops_at is not None and stops_at < row["day"] else None
        row["joins"] = in_order and (row["period_wh"] <= 0 or row["day"] != first)
    return rows


def decide(meter: Meter, what: str, wish: Mapping[str, Any], store: Store, now: datetime) -> dict[str, Any]:
    """Carries out `retry` or `set-aside` for all rows that the wish names, or for none; with `dry` for none.

    Where order is the rule, days that went in one read with a named one are part of the wish.
    """
    first, last = date.fromisoformat(wish["first"]), date.fromisoformat(wish["last"])
    if first > last:
        raise UsageError(f"{first} is after {last}", hint="Write the earlier day first: 2026-03-14..2026-03-16")
    because = " ".join(str(wish.get("because", "")).split())[:MOST_WORDS]
    rows = _rows(meter, wish["uplink"], first, last, store)
    found: list[tuple[str, DayRow, Decision]] = []
    refused: dict[date, str] = {}
    for uplink, mine in rows.items():
        report = next((one for one in meter.reports if one.uplink == uplink), None)
        named = _together(uplink, mine, store) if report is not None and report.ordered else mine
        judge = _judge(what, uplink, report, named, wish, store, now)
        for row in named:
            decision = judge(row)
            if isinstance(decision, Decision):
                found.append((uplink, row, decision))
            elif wish["uplink"] is not None or row.day not in refused:
                refused[row.day] = f"{uplink}: {decision}"
    decided = {row.day for _, row, _ in found}
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    for day in sorted({*days, *refused}):
        if day not in decided:
            why = refused.get(day, "no closed day of it is on its way there")
            raise UsageError(f"{meter.id} {day}, {why}", hint=f"Nothing was changed. heliograph backlog {meter.id}")
    if not wish["dry"]:
        for uplink in rows:
            wishes = [(row, decision) for name, row, decision in found if name == uplink]
            if wishes:
                store.outbox.decide(what, uplink, wishes, because, now)
    return {
        "meter": meter.id,
        "days": [
            {
                "uplink": uplink,
                "day": str(row.day),
                "period_wh": row.period_wh,
                "state": row.state,
                "rule": row.last_rule,
                "becomes": decision.state,
                "remote_id": decision.remote_id or row.remote_id,
                "how": decision.how,
            }
            for uplink, row, decision in found
        ],
    }


def old_names(meters: Sequence[Meter], store: Store, uplink: str) -> list[str]:
    """Days that wait under another name than report_as says, in words, with the commands that correct it."""
    found = []
    for meter, report in ((one, report) for one in meters for report in one.reports if report.uplink == uplink):
        by_name: dict[str, list[DayRow]] = {}
        for row in store.outbox.old_names(uplink, meter.id, report.remote_id):
            by_name.setdefault(row.remote_id, []).append(row)
        for name, rows in by_name.items():
            runs = list(_runs([row.day for row in rows]))
            stretches = [str(first) if first == last else f"{first}..{last}" for first, last in runs[:MOST_RUNS]]
            retry = "; ".join(f"heliograph backlog retry {meter.id} {one} --uplink {uplink}" for one in stretches)
            days = f"{len(rows)} day{'s' if len(rows) != 1 else ''}"
            words = f"{days} of {meter.id} wait{'' if len(rows) != 1 else 's'} under the old name {name}"
            more = f"; and {len(runs) - MOST_RUNS} more stretches" if len(runs) > MOST_RUNS else ""
            found.append(f"{words} (report_as says {report.remote_id}). If they belong to that one: {retry}{more}")
    return found


def _runs(days: Sequence[date]) -> Iterator[tuple[date, date]]:
    """Stretches without a gap, for a wish is carried out for all of its days or for none."""
    first = last = days[0]
    for day in days[1:]:
        if day != last + timedelta(days=1):
            yield first, last
            first = day
        last = day
    yield first, last


def _rows(meter: Meter, uplink: str | None, first: date, last: date, store: Store) -> dict[str, list[DayRow]]:
    known = sorted({report.uplink for report in meter.reports} | set(store.outbox.counts()))
    if uplink is not None and uplink not in known:
        raise UsageError(f"there is no uplink {uplink}", hint=f"Uplinks: {', '.join(known) or 'none'}")
    return {name: store.outbox.rows(name, meter.id, first, last) for name in known if uplink in (None, name)}


def _judge(
    what: str,
    uplink: str,
    report: Report | None,
    rows: Sequence[DayRow],
    wish: Mapping[str, Any],
    store: Store,
    now: datetime,
) -> Callable[[DayRow], Decision | str]:
    ordered = report is not None and report.ordered
    if what == "set-aside":
        unnamed = wish["uplink"] is None

        def let_go(row: DayRow) -> Decision | str:
            if unnamed and row.state == "due":
                return f"it waits for its turn; to let it go there all the same, say so: --uplink {uplink}"
            return delivery.set_aside(row, ordered=ordered)

        return let_go
    if report is None:
        return lambda _: "the meter does not report there any more"
    history, not_there = bool(wish.get("as_history")), bool(wish.get("not_there"))
    if history and not report.history:
        return lambda _: "this platform knows no History reads; leave --as-history out"
    newest = store.outbox.newest_sent(uplink, report.remote_id) if ordered else None
    lost, tries = store.outbox.lost_until(now), store.outbox.last_tries(rows)

    def judge(row: DayRow) -> Decision | str:
        refused, as_history, sent = tries[row.id]
        overtaken = newest if newest is not None and newest > row.day else None
        elsewhere = lost is not None and row.end <= lost
        standing = Standing(elsewhere, overtaken, refused, as_history, report.remote_id, sent)
        return delivery.retried(row, standing, history=history, not_there=not_there)

    return judge


def _together(uplink: str, rows: Sequence[DayRow], store: Store) -> list[DayRow]:
    """With the days that went in one read with them: it is held there as their sum, so they are decided together."""
    found = {row.id: row for row in rows}
    found |= {mate.id: mate for mate in store.outbox.companions(uplink, rows)} if rows else {}
    return sorted(found.values(), key=lambda row: row.day)
