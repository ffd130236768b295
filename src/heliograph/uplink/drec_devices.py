"""What the D-REC platform knows about our devices: read from it, never assumed. It decides which reads are legal.

Nothing of it is stored here: a start reads it again. While it cannot be read, days are sent as ever and the server's
own answers decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from heliograph.core.ceiling import DEFAULT_YIELD, Plant
from heliograph.core.delivery import FLOOR, Verdict
from heliograph.uplink.drec_rules import classify
from heliograph.uplink.http import Answer, Exchange, fault, portal
from heliograph.uplink.tokens import TOKEN_WAIT

EVERY = timedelta(days=1)
# After an answer that does not fit what we know; several at once are one reason to look.
AT_MOST_EVERY = timedelta(minutes=10)
# A list that could not be read is tried again.
AGAIN = timedelta(minutes=10)
REFUSED_AGAIN = timedelta(hours=1)
PAGES = 100

NO_LIST = "Days are sent all the same."
NO_RIGHT = "The account needs the permission DEVICE Read for it."


@dataclass(frozen=True, slots=True)
class Device:
    """One device as the platform lists it. None: it does not say."""

    remote_id: str
    number: int | None = None
    plant: Plant | None = None
    created: datetime | None = None
    """Onboarding: Delta and Aggregate end after it, History ends before it."""
    commissioned: datetime | None = None
    read_type: str | None = None
    """The type its reads are fixed to."""
    first: bool = False
    """The platform says that it has no read yet."""


def key(remote_id: str) -> str:
    """Names are compared trimmed and in any case (section 4)."""
    return remote_id.strip().lower()


def parse(entry: Any) -> Device | None:
    """One entry of the list; generation 3 calls the name `serialNumber`."""
    if not isinstance(entry, Mapping):
        return None
    name = next((entry[name] for name in ("externalId", "serialNumber") if isinstance(entry.get(name), str)), "")
    if not name.strip():
        return None
    capacity, commissioned = _number(entry.get("capacity")), _moment(entry.get("commissioningDate"))
    kind, number = entry.get("meterReadtype"), entry.get("id")
    return Device(
        name.strip(),
        number if isinstance(number, int) and not isinstance(number, bool) else None,
        Plant(capacity, _number(entry.get("yieldValue")) or DEFAULT_YIELD, commissioned) if capacity else None,
        _moment(entry.get("createdAt")),
        commissioned,
        kind if isinstance(kind, str) and kind else None,
        "meterReadtype" in entry and not kind,
    )


def _number(value: object) -> float | None:
    """Above 0, also where the server's database gives its decimals as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if 0 < found < 1e9 else None


def _moment(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return None if found is None else (found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC))


class Devices:
    """The platform's list of devices, kept in memory; read at the first delivery, once a day, and when in doubt."""

    def __init__(self, exchange: Callable[..., Exchange], organization: int | None) -> None:
        self._exchange, self._organization = exchange, organization
        self._known: dict[str, Device] = {}
        self._next: datetime | None = None
        self._asked: datetime | None = None
        self._cut = False
        self.complete = False
        """The list was had to its end: what is not in it is not registered."""
        self.trouble = ""
        self.failed: Verdict | None = None
        """Why the newest look told nothing; None where it did, or where the account may not look."""

    def get(self, remote_id: str) -> Device | None:
        return self._known.get(key(remote_id))

    def unknown(self, remote_ids: Iterable[str]) -> list[str]:
        """Those that a complete list does not show."""
        return sorted({name for name in remote_ids if self.complete and key(name) not in self._known})

    def doubt(self, now: datetime) -> None:
        """An answer did not fit the picture."""
        if self._asked is not None:
            self._next = max(now, self._asked + AT_MOST_EVERY)

    def began(self, remote_id: str, read_type: str, now: datetime) -> None:
        """The platform has a read of it now."""
        known = self.get(remote_id)
        if known is None and self.complete:
            self._known[key(remote_id)] = Device(remote_id)  # it has been registered in the meantime
            self.doubt(now)
        elif known is not None and known.first:
            self._known[key(remote_id)] = replace(known, first=False, read_type=read_type)

    def refresh(self, now: datetime) -> Verdict | None:
        """Reads the list when it is time. A verdict: nothing at all may leave now (line, token, rate)."""
        if self._next is not None and now < self._next:
            return None
        self._asked, found = now, self._list()
        if isinstance(found, dict):
            self._known, self._next, self.complete, self.trouble = found, now + EVERY, not self._cut, ""
            self.failed = None
            return None
        refused = isinstance(found, Answer) and 400 <= found.status < 500
        self._next = now + (REFUSED_AGAIN if refused else AGAIN)
        verdict = self._verdict(found, now)
        self.failed = None if isinstance(found, Answer) and found.status == 403 else verdict
        more = f" {NO_RIGHT}" if refused else ""
        self.trouble = f"The list of devices could not be read: {verdict.text}. {NO_LIST}{more}"
        return verdict if verdict.pause_all else None

    def _list(self) -> dict[str, Device] | Exchange:
        """A plain array, or pages of 20: an API user must ask for these, whoever filters gets them (section 4)."""
        query = {"organizationId": str(self._organization), "pagenumber": "1"} if self._organization is not None else {}
        found: dict[str, Device] = {}
        self._cut = True
        for page in range(1, PAGES + 1):
            answer = self._exchange("GET", "/device/my", query=query)
            if isinstance(answer, Answer) and answer.status == 200 and not query and not answer.complete:
                # More than we take at once. Every device has this fuel, so nothing is filtered away.
                query = {"fuelCode": "ES100", "pagenumber": "1"}
                answer = self._exchange("GET", "/device/my", query=query)
            if not isinstance(answer, Answer) or answer.status != 200:
                return answer
            entries = answer.json.get("devices") if isinstance(answer.json, dict) else answer.json
            if not isinstance(entries, list):
                return answer
            found |= {key(device.remote_id): device for entry in entries if (device := parse(entry)) is not None}
            pages = answer.json.get("totalPages") if isinstance(answer.json, dict) else None
            if not entries or not isinstance(pages, int) or page >= pages:
                self._cut = False
                break
            query = {**query, "pagenumber": str(page + 1)}
        return found

    def _verdict(self, found: Exchange, now: datetime) -> Verdict:
        """Nothing was sent, so rows stay due whatever it was."""
        if not isinstance(found, Answer):
            return replace(fault(found), state="due")
        if (other := portal(found)) is not None:
            return replace(other, state="due")
        if found.success:
            return Verdict("due", "shape", found.words())
        rule = classify(found, "Delta")
        pause = rule.action == "AUTH" or found.status == 429 or rule.id in ("T5", "D4", "T7")
        wait = REFUSED_AGAIN if rule.action == "HOLD" or rule.id == "T4" else FLOOR
        wait = found.retry_after(now) or (TOKEN_WAIT if rule.id == "T3" else wait)
        told = Verdict("due", rule.id, found.words(), rule.remedy, wait, pause_all=pause, busy=found.status == 429)
        return replace(told, token=rule.action == "AUTH")
