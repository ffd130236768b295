"""Which closed days make the next read at D-REC, and which can never be one. Days, devices and arithmetic only.

One read per request, strictly oldest first. A read of 0 Wh is refused, and one above the energy ceiling too: both ride
along with the next day, which loses nothing, for a Delta covers everything since the read before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote

from heliograph.core.ceiling import ceiling_wh
from heliograph.core.delivery import DayRow, Parcel, Verdict, as_history, bare_rule
from heliograph.uplink.drec_devices import Device
from heliograph.uplink.drec_rules import CEILING, COMMISSIONING, MERGING, ONBOARDING

ReadType = Literal["Delta", "Aggregate"]

# Section 6.6, L4: a ceiling that the server still calls too low after three days is a matter of capacity or scaling.
MERGE_DAYS = 3
# What our own arithmetic keeps back longer than this is sent once, to hear the server's word: a newer generation may
# reckon in another way, and a day must not wait for ever for a formula of ours.
ASK_DAYS = 14
SECOND = timedelta(seconds=1)
LATER = timedelta(hours=1)

TYPE = 'Set read_type = "{}" in [uplink.drec], or register a new device.'
RESUME = "heliograph backlog retry METER DAYS"
NO_ZERO = "Nothing to do: the platform takes no read of 0 Wh, and no energy is lost."
STRADDLES = (
    "What was metered after the registration cannot be told apart in this day, so none of it is claimed. The next day "
    "is the first one that is sent."
)


def second(moment: datetime) -> datetime:
    """Whole seconds: certificates begin one second after the read before (section 7.5)."""
    return moment.astimezone(UTC).replace(microsecond=0)


def text(moment: datetime) -> str:
    """The only form of a time that no server setting can misread (section 5.1)."""
    utc = moment.astimezone(UTC)
    return utc.strftime("%Y-%m-%dT%H:%M:%S") + (f".{utc.microsecond // 1000:03d}Z" if utc.microsecond >= 1000 else "Z")


def path(remote_id: str) -> str:
    return f"/meter-reads/new/{quote(remote_id, safe='')}"


def span(rows: Sequence[DayRow]) -> int:
    return (rows[-1].day - rows[0].day).days + 1


def value_wh(rows: Sequence[DayRow], read_type: str, zero_wh: int) -> int:
    """Aggregate: the running total from where the counter started. Else the energy of the days."""
    return rows[-1].total_wh - zero_wh if read_type == "Aggregate" else sum(row.period_wh for row in rows)


# Delta and Aggregate


def next_read(
    rows: Sequence[DayRow], device: Device | None, read_type: ReadType, zero_wh: int, now: datetime
) -> list[DayRow] | None:
    """The oldest day of a device with those that must travel with it; None where the next day has to be waited for.

    `rows` are without History.
    """
    taken: list[DayRow] = []
    for row in rows:
        taken.append(row)
        if _ready(taken, device, read_type, zero_wh, now):
            return taken
    return None


def _ready(rows: Sequence[DayRow], device: Device | None, read_type: ReadType, zero_wh: int, now: datetime) -> bool:
    last = rows[-1]
    if last.period_wh <= 0 or value_wh(rows, read_type, zero_wh) <= 0 or last.last_rule in MERGING:
        return False
    return span(rows) > ASK_DAYS or _below(rows, device, read_type, zero_wh, now)


def _below(rows: Sequence[DayRow], device: Device | None, read_type: ReadType, zero_wh: int, now: datetime) -> bool:
    """Below the ceiling of the time since the last read, which is at least since these days began (section 7.1).

    The first Delta has no ceiling (L5); it is a baseline that no certificate counts, so it takes as few days as can be.
    """
    if device is None or device.plant is None or (device.first and read_type == "Delta"):
        return True
    start = rows[0].start
    if device.first and device.created is not None:
        start = device.created  # A3: the first counter value is measured from the registration
        return value_wh(rows, read_type, zero_wh) < ceiling_wh(device.plant, start, second(rows[-1].end), now)
    return sum(row.period_wh for row in rows) < ceiling_wh(device.plant, start, second(rows[-1].end), now)


def above_ceiling(row: DayRow, device: Device | None, now: datetime) -> bool:
    """Whether this day alone is more than the server takes for its length."""
    if device is None or device.plant is None:
        return False
    return row.period_wh >= ceiling_wh(device.plant, row.start, second(row.end), now)


def parcel(
    rows: Sequence[DayRow], device: Device | None, read_type: str, zero_wh: int, organization: int | None
) -> Parcel:
    if read_type == "History":
        read: dict[str, Any] = {"starttimestamp": text(history_start(rows[0]))}
        read["endtimestamp"] = text(history_end(rows[-1], device))
    else:
        read = {"endtimestamp": text(second(rows[-1].end))}
    read["value"] = value_wh(rows, read_type, zero_wh)
    body: dict[str, Any] = {"type": read_type, "unit": "Wh", "reads": [read]}
    if organization is not None:
        body["organizationId"] = organization
    return Parcel(path(rows[-1].remote_id), json.dumps(body, separators=(",", ":")).encode(), tuple(rows))


# What can be told before anything is sent


def known_before(
    rows: Sequence[DayRow], device: Device, read_type: ReadType, zero_wh: int, now: datetime
) -> dict[int, Verdict]:
    """Rows of one device that must not leave, with the reason, by what the platform knows of the device."""
    found: dict[int, Verdict] = {}
    for row in rows:
        history = as_history(row)
        if (verdict := _history_date(row, device) if history else _date(row, device)) is not None:
            found[row.id] = verdict
    if device.created is not None:
        left = [row for row in rows if as_history(row) and row.id not in found]
        for group, verdict in history_groups(left, device, now):
            if verdict is not None:
                found |= {row.id: verdict for row in group}
    ongoing = [row for row in rows if not as_history(row) and row.id not in found]
    if ongoing and (verdict := _locked(ongoing[0], device, read_type, zero_wh)) is not None:
        found[ongoing[0].id] = verdict
    return found


def _date(row: DayRow, device: Device) -> Verdict | None:
    """E1, E2 (section 6.5). Such a day never goes as Delta or Aggregate; it is set aside and stops nobody.

    A day in the middle of which the device was registered is set aside as a whole. As Delta it would claim for the time
    after the registration what was metered before it, as History the reverse, and parts of a day are not metered with
    certainty. What is lost for certificates is one day at most, and it is shown.
    """
    if device.created is not None and row.start < device.created:
        at = f"registered at the platform {text(device.created)}"
        if second(row.end) <= device.created:
            return Verdict("rejected", "aside/E1", f"the day ends before the device was {at}", ONBOARDING)
        return Verdict("rejected", "aside/E1", f"in the middle of the day the device was {at}", STRADDLES)
    if device.commissioned is not None and row.start < device.commissioned:
        words = f"the day begins before the plant was commissioned {text(device.commissioned)}"
        return Verdict("rejected", "aside/E2", words, COMMISSIONING)
    return None


def _locked(row: DayRow, device: Device, read_type: ReadType, zero_wh: int) -> Verdict | None:
    """L1, and A3 with what a newer server would count twice: its first counter value is energy since onboarding.

    The day stays due and is looked at again every hour, for it is cured by the configuration or at the platform.
    """
    if device.read_type is not None and device.read_type.lower() != read_type.lower():
        words = f"the device's reads at the platform are {device.read_type}, here {read_type} is set"
        return Verdict("due", "L1", words, TYPE.format(device.read_type), LATER)
    before = row.total_wh - row.period_wh - zero_wh
    if device.first and read_type == "Aggregate" and before > 0:
        words = f"the counter stood at {before} Wh, not at 0, where the device's first read begins"
        remedy = 'Set read_type = "Delta": the platform takes a first Aggregate for energy since the registration.'
        return Verdict("due", "A3", words, remedy, LATER)
    return None


# History


def history_start(row: DayRow) -> datetime:
    """Ends are inclusive: a shared boundary counts as overlap (H7)."""
    return second(row.start) + SECOND


def history_end(row: DayRow, device: Device | None) -> datetime:
    """Before onboarding; where it is the very moment, one second earlier (H6)."""
    end = second(row.end)
    return end - SECOND if device is not None and device.created is not None and end >= device.created else end


def _history_date(row: DayRow, device: Device) -> Verdict | None:
    """H3, H5, H6 (section 6.8): only between commissioning and onboarding, at most three years back."""
    start = history_start(row)
    if device.created is not None:
        at = f"the device was registered at the platform {text(device.created)}"
        if row.start >= device.created:
            remedy = f"It is sent in the ordinary way if you say so: {RESUME}."
            return Verdict("rejected", "aside/H3", f"{at}, before this day began", remedy)
        if second(row.end) > device.created:
            return Verdict("rejected", "aside/E1", f"in the middle of the day {at}", STRADDLES)
        if start <= _years_before(device.created, 3):
            words = f"the day is more than three years older than the device: {at}"
            return Verdict("rejected", "aside/H6", words, "The platform takes no older energy.")
    if device.commissioned is not None and start <= device.commissioned:
        words = f"the day begins before the plant was commissioned {text(device.commissioned)}"
        return Verdict("rejected", "aside/H5", words, COMMISSIONING)
    return None


Group = tuple[list[DayRow], Verdict | None]
"""Days of one read, or the reason why they are none."""


def history_groups(rows: Sequence[DayRow], device: Device | None, now: datetime) -> list[Group]:
    """Days asked for as History, as they are sent: alone, or with neighbours where one alone is above its ceiling (H8).

    Only days without a gap between them share a read. A verdict says why a group cannot be sent: days of 0 Wh that
    nobody takes along are skipped (H4).
    """
    found: list[Group] = []
    run: list[DayRow] = []
    for row in rows:
        if run and run[-1].end != row.start:
            found += _groups_of_a_run(run, device, now)
            run = []
        run.append(row)
    return found + _groups_of_a_run(run, device, now)


def _groups_of_a_run(run: Sequence[DayRow], device: Device | None, now: datetime) -> list[Group]:
    found: list[Group] = []
    taken: list[DayRow] = []
    for row in run:
        if not taken and row.period_wh <= 0:
            words = "0 Wh on a day before the device was registered"
            found.append(([row], Verdict("rejected", "aside/H4", words, NO_ZERO)))
            continue
        taken.append(row)
        if bare_rule(row.last_rule) not in MERGING and _history_below(taken, device, now):
            found.append((taken, None))
            taken = []
    # What is too much for its own time may fit together with the days before it.
    while taken and found and (found[-1][1] is None or found[-1][1].rule == "aside/H4"):
        taken = [*found.pop()[0], *taken]
        if _history_below(taken, device, now):
            return [*found, (taken, None)]
    if taken:
        words = f"{sum(row.period_wh for row in taken)} Wh are more than the platform takes for {len(taken)} days"
        remedy = f"Ask for it together with its neighbours, or: {CEILING}"
        found.append((taken, Verdict("rejected", "aside/H8", words, remedy)))
    return found


def _history_below(rows: Sequence[DayRow], device: Device | None, now: datetime) -> bool:
    if device is None or device.plant is None:
        return True
    start, end = history_start(rows[0]), history_end(rows[-1], device)
    return sum(row.period_wh for row in rows) < ceiling_wh(device.plant, start, end, now)


def _years_before(moment: datetime, years: int) -> datetime:
    try:
        return moment.replace(year=moment.year - years)
    except ValueError:  # February 29; the server's language makes March 1 of it
        return moment.replace(year=moment.year - years, month=3, day=1)
