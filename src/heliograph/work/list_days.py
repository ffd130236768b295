"""Lists what each local day of a meter came to: closed, held or missing. The verb and the REST show the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from heliograph.core.daily import ESTIMATED, METHODS, Day, Held, end_of, start_of
from heliograph.store import Store
from heliograph.work.close_days import estimated_wh
from heliograph.work.count_polls import covered


def list_days(
    meters: Sequence[str],
    store: Store,
    zone: ZoneInfo,
    now: datetime,
    first: date,
    last: date,
    *,
    after: tuple[str, str] = ("", ""),
) -> Iterator[dict[str, Any]]:
    """By meter and day, those behind `after` (a meter and the text of a day); made one by one as they are asked for."""
    for meter in sorted(meters):
        if meter < after[0]:
            continue
        days: list[Day | Held] = [
            *store.days.all(meter, first=first, last=last),
            *(held for held in store.days.held(meter) if first <= held.day <= last),
        ]
        seams = store.seams.all(meter) if days else []
        for one in sorted(days, key=lambda one: one.day):
            if (meter, one.day.isoformat()) <= after:
                continue
            begins, ends = start_of(one.day, zone), end_of(one.day, zone)
            yield {
                "meter": meter,
                "day": one.day,
                **(_closed(one, store) if isinstance(one, Day) else _without(one)),
                "seams": [
                    {"id": seam.id, "kind": seam.kind, "at": seam.at, "corrects": seam.corrects, "text": str(seam)}
                    for seam in seams
                    if begins < seam.at <= ends
                ],
                "coverage": covered(meter, one.day, store, zone, now),
            }


def _closed(day: Day, store: Store) -> dict[str, Any]:
    split = day.closing.method if day.closing.method in ESTIMATED else day.opening.method
    return {
        "state": "closed",
        "period_wh": day.period_wh,
        "total_wh": day.total_wh,
        "estimated_split": day.estimated,
        "estimated_wh": estimated_wh(day, store),
        "opening": day.opening.method,
        "closing": day.closing.method,
        "reason": METHODS[split] if day.estimated else "",
    }


def _without(held: Held) -> dict[str, Any]:
    return {
        "state": held.kind,
        "period_wh": None,
        "total_wh": None,
        "estimated_split": False,
        "estimated_wh": None,
        "opening": "",
        "closing": "",
        "reason": held.reason,
    }
