"""Which inverters belong to a group that REDEX has declined (§5.1, §5.3): nothing is sent for them (§9 rule 30).

Nothing of it is stored here: a start looks again. The look is a convenience; where it fails, days are sent as ever and
the platform's own answers decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from heliograph.core.delivery import Note, Registered, Verdict
from heliograph.uplink.http import Answer, Exchange, fault
from heliograph.uplink.redex_answers import envelope, trouble

PATH = "/public/v2/device-applications"
EVERY = timedelta(days=1)
# After a refusal of what was sent, and after a look that failed.
AT_MOST_EVERY = timedelta(hours=1)
# The first look after a start, and as much again by chance: a fleet that comes back at once has better things to ask.
FIRST = timedelta(hours=6)
ASK_WHY = "Ask REDEX why: nothing is sent for it until the group is in force again."
PAGE_ITEMS = "50"
PAGES = 20
# Groups whose inverters are listed in one look, the newest first.
MOST = 20


@dataclass(frozen=True, slots=True)
class Group:
    id: str
    name: str
    """As people know it there, with its number."""
    created: str
    declined: bool


class Groups:
    """Kept in memory; read once a day when nothing is to be sent, and when something was refused."""

    def __init__(self, exchange: Callable[..., Exchange], chance: Callable[[], float]) -> None:
        self._exchange, self._chance = exchange, chance
        self._of: dict[str, Group] = {}
        self._unlisted: list[Group] = []
        """Declined groups whose inverters cannot be had."""
        self._asked: datetime | None = None
        self._next: datetime | None = None
        self._off = False
        """This platform has no such list."""
        self._doubted = False

    def declined(self, remote_id: str) -> Group | None:
        return self._of.get(remote_id)

    def wait(self, now: datetime) -> timedelta:
        """Until the next look."""
        return max((self._next or now) - now, timedelta(0))

    def doubt(self, now: datetime) -> None:
        """Something was refused that a declined group would explain."""
        self._doubted = True
        self._next = now if self._asked is None else max(now, self._asked + AT_MOST_EVERY)

    def _due(self, now: datetime, *, calm: bool, urgent: bool) -> bool:
        if self._off or (self._asked is None and urgent):
            return not self._off
        self._next = self._next or now + FIRST * (1 + self._chance())
        late = now - self._next
        return late >= timedelta(0) and (calm or self._doubted or bool(self._of) or late >= EVERY)

    def refresh(self, now: datetime, *, calm: bool, urgent: bool) -> Verdict | None:
        """Looks when it is time. A verdict: nothing at all may leave now (line, token, rate).

        `calm`: nothing is to be sent. `urgent`: an earlier life knew of a declined group.
        """
        if not self._due(now, calm=calm, urgent=urgent):
            return None
        self._asked, self._next, self._doubted = now, now + EVERY, False
        failed = self._look()
        if failed is None:
            return None
        self._next = now + AT_MOST_EVERY
        if isinstance(failed, Answer) and failed.status in (404, 405):
            self._off, self._of = True, {}
            return None
        if isinstance(failed, Answer) and failed.status == 403:
            return None  # an account may send without being allowed to list
        verdict = trouble(failed, now) if isinstance(failed, Answer) else fault(failed)
        return verdict if verdict.pause_all else None

    def notes(self, ours: Iterable[str]) -> Iterator[Note]:
        held: dict[Group, int] = {}
        for group in filter(None, map(self.declined, sorted(ours))):
            held[group] = held.get(group, 0) + 1
        for group, count in held.items():
            text = f"REDEX has declined the group {group.name}: its inverters here ({count}) are read, but not sent"
            yield Note(f"{text}; ask REDEX why. Once it is in force again they are sent by themselves.", alarm=True)
        for group in self._unlisted:
            text = f"REDEX has declined the group {group.name}, and does not say which inverters belong to it"
            yield Note(f"{text}. Ask REDEX why; days of its inverters may be refused.", alarm=True)

    def listed(self, remote_ids: Set[str], now: datetime) -> Mapping[str, Registered] | Verdict:
        """Those of these inverters that the newest groups show. A verdict: nothing can be asked at all."""
        found: dict[str, Registered] = {}
        groups = self._groups({})
        failed = groups if not isinstance(groups, list) else None
        for group in (groups if isinstance(groups, list) else [])[:MOST]:
            if remote_ids <= found.keys():
                break
            entries = self._pages(f"{PATH}/{group.id}/devices", {})
            if not isinstance(entries, list):
                failed = entries
                break
            for one in (one for entry in entries for one in entry.get("Inverters") or () if isinstance(one, dict)):
                name = one.get("RemoteInvId")
                if isinstance(name, str) and name in remote_ids and name not in found:
                    kw, text = _kilowatts(one.get("InstalledCapacity")), _standing(group)
                    found[name] = Registered(name, True, kw, text, barred=group.declined)
        if failed is None or (isinstance(failed, Answer) and failed.status in (403, 404, 405)):
            return found  # an account may send without being allowed to list
        return trouble(failed, now) if isinstance(failed, Answer) else fault(failed)

    def _look(self) -> Exchange | None:
        """What failed, or None. Mostly one request: there are no declined groups."""
        found = self._groups({"Status": "Declined"})
        if not isinstance(found, list):
            return found
        refused = [group for group in found if group.declined]
        if not refused:
            self._of, self._unlisted = {}, []
            return None
        # An inverter may have been registered anew since then: its newest group counts.
        found = self._groups({})
        if not isinstance(found, list):
            return found
        newest = sorted({group.id: group for group in found + refused}.values(), key=lambda one: one.created)[::-1]
        of: dict[str, Group] = {}
        left = len(refused)
        for group in newest[:MOST]:
            inverters = self._inverters(group)
            if not isinstance(inverters, set):
                self._unlisted = refused
                return inverters
            for remote_id in inverters:
                of.setdefault(remote_id, group)
            left -= group.declined
            if not left:
                break
        self._of = {remote_id: group for remote_id, group in of.items() if group.declined}
        self._unlisted = []
        return None

    def _groups(self, only: Mapping[str, str]) -> list[Group] | Exchange:
        query = {**only, "DeviceTypes": "Grouped", "OrderBy": "CreatedDate", "IsDescending": "true"}
        entries = self._pages(PATH, query)
        return [group for entry in entries if (group := _group(entry))] if isinstance(entries, list) else entries

    def _inverters(self, group: Group) -> set[str] | Exchange:
        entries = self._pages(f"{PATH}/{group.id}/devices", {})
        if not isinstance(entries, list):
            return entries
        inverters = [one for entry in entries for one in entry.get("Inverters") or () if isinstance(one, dict)]
        return {name for one in inverters if isinstance(name := one.get("RemoteInvId"), str)}

    def _pages(self, path: str, query: Mapping[str, str]) -> list[dict[str, Any]] | Exchange:
        """All entries of a list: pages from 1, until Meta or an empty or repeated page ends it (§9 rule 24)."""
        entries: list[dict[str, Any]] = []
        before: object = None
        for page in range(1, PAGES + 1):
            wanted = {**query, "CurrentPage": str(page), "ItemsPerPage": PAGE_ITEMS}
            answer = self._exchange("GET", path, query=wanted)
            said = envelope(answer) if isinstance(answer, Answer) else None
            data = said.get("Data") or [] if said is not None else None
            if said is None or not isinstance(data, list):
                return answer
            if not data or data == before:
                break
            entries += [entry for entry in data if isinstance(entry, dict)]
            before, meta = data, said.get("Meta")
            pages = meta.get("TotalPage") if isinstance(meta, dict) else None
            if isinstance(pages, int) and page >= pages:
                break
        return entries


def _group(entry: Mapping[str, Any]) -> Group | None:
    id, status, number = entry.get("Id"), entry.get("Status"), entry.get("ApplicationNumber")
    if not isinstance(id, str) or not id or "/" in id:
        return None
    value = status.get("Value") if isinstance(status, dict) else status
    name = str(entry.get("DeviceName") or id)
    shown = f'"{name}" ({number})' if isinstance(number, str) and number else f'"{name}"'
    return Group(id, shown, str(entry.get("CreatedTime") or ""), value == "Declined")


def _standing(group: Group) -> str:
    return f"REDEX has declined its group {group.name}. {ASK_WHY}" if group.declined else ""


def _kilowatts(value: object) -> float | None:
    """kW (§4.2); text or number, and 0 where nobody said."""
    try:
        found = float(value) if isinstance(value, int | float | str | Decimal) and not isinstance(value, bool) else 0.0
    except ValueError:
        return None
    return found if 0 < found < 1e6 else None
