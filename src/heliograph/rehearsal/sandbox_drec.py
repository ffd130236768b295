"""A stand-in for the D-REC platform of October 2024 (generation G1): login, devices, reads, read-back. No sockets here.

Rule names (E1, L3, ...) are those of the table of validation rules that the uplink works from. The checks run in the
order of the real server and only the first failure is reported. Where the real server takes something that only works
by luck (a moment without a zone, a number in quotes) this one refuses.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_FLOOR, Decimal
from functools import lru_cache
from typing import Any
from urllib.parse import unquote
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from heliograph.rehearsal.sandbox_exchange import (
    Answer,
    BadJson,
    Bare,
    Violations,
    bearer,
    header,
    is_text,
    iso,
    json_answer,
    query_members,
    read_json,
    shorten,
)

PREFIX = "/api"
TOKEN_LIFE = timedelta(days=180)
MAX_BODY = 100 * 1024
READS_PER_PAGE = 5
DEVICES_PER_PAGE = 20
ORGANIZATION = 1
TYPES = ("History", "Delta", "Aggregate")
UNITS = {"Wh": 1, "kWh": 10**3, "MWh": 10**6, "GWh": 10**9}
DEFAULT_YIELD = 2000
"""Specific yield, kWh per kW and year, that the server assumes for a device without one."""

_UTC_FORM = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,3})?(Z|[+-]\d\d:\d\d)", re.ASCII)
_LOCAL_FORM = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{1,3})?", re.ASCII)
_JSON_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
MAX_VALUE = Decimal(10) ** 15
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Device:
    """A registered plant. `created_at` is the onboarding instant; reads end after it, History before it."""

    external_id: str
    capacity_kw: float
    created_at: datetime
    commissioned: datetime
    yield_value: int | None = None
    timezone: str | None = None


@dataclass(slots=True)
class State:
    """What the server holds of one device. Energies in Wh; `reads` ascend in time.

    `counter` is the last Aggregate value with its end; the first one is a baseline and stands nowhere else.
    """

    device: Device
    number: int
    read_type: str | None = None
    reads: dict[datetime, int] = field(default_factory=dict)
    last: datetime | None = None
    counter: tuple[datetime, int] | None = None
    counters: dict[datetime, int] = field(default_factory=dict)
    history: list[tuple[datetime, datetime, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Read:
    """One read as stored: times in UTC, energy in whole Wh."""

    type: str
    start: datetime | None
    end: datetime
    wh: int


class Refused(Exception):
    """A rule was broken; carries its name, the answer, and the words for the log."""

    def __init__(self, rule: str, answer: Answer, text: str) -> None:
        super().__init__(text)
        self.rule = rule
        self.answer = answer
        self.text = text


def ceiling_wh(device: Device, hours: float, now: datetime) -> float:
    """The energy a read over so many hours must stay below. Age is in years, counted from commissioning to now."""
    age = _years(device.commissioned, now)
    if age <= 0:
        age = 1.0
    watts = device.capacity_kw * 1000
    return float(watts * hours * ((device.yield_value or DEFAULT_YIELD) / 8760) * 0.995 ** (age - 1) * (120 / 100))


class Drec:
    """`handle` is the platform; paths come without the /api prefix."""

    name = "drec"

    def __init__(
        self,
        now: Callable[[], datetime],
        violations: Violations,
        *,
        token: str = "",
        seed: int = 0,
        devices: Iterable[Device] = (),
        open_registration: bool = True,
        default_kw: float = 50.0,
        username: str = "gateway@example.org",
        password: str = "sandbox1",
        journal: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self._now = now
        self._violations = violations
        self._key = hashlib.sha256(f"drec {seed}".encode()).digest()
        self._seed = seed
        self._journal = journal
        self.token = token
        self.open_registration = open_registration
        self.default_kw = default_kw
        self.username = username
        self.password = password
        self.session_race = False
        """True: the first call with a fresh token is answered `Token revoked`, as the real server may within 0.5 s."""
        self._sessions: set[str] = set()
        self._racing: set[str] = set()
        self._opened = now()
        self.states: dict[str, State] = {}
        for device in devices:
            self._add(device)

    def _add(self, device: Device) -> State:
        key = device.external_id.strip().lower()
        self.states[key] = State(device, 101 + len(self.states))
        return self.states[key]

    def _find(self, text: str) -> State | None:
        """By the developer's own id, trimmed and whatever its case; registers it where registration is open."""
        external_id = text.strip()
        state = self.states.get(external_id.lower())
        if state is None and self.open_registration and external_id:
            long_ago = self._opened - timedelta(days=731)
            state = self._add(Device(external_id, self.default_kw, long_ago, long_ago))
            self._journal({"drec_device": {"id": external_id, "kw": self.default_kw, "at": long_ago.isoformat()}})
        return state

    def restore_device(self, event: Mapping[str, Any]) -> None:
        at = datetime.fromisoformat(event["at"])
        if event["id"].lower() not in self.states:
            self._add(Device(event["id"], event["kw"], at, at))

    def restore_read(self, event: Mapping[str, Any]) -> None:
        """One line of the journal, already judged when it was written."""
        state = self.states.get(event["device"].lower())
        if state is not None:
            start = datetime.fromisoformat(event["start"]) if event["start"] else None
            self._store(state, Read(event["type"], start, datetime.fromisoformat(event["end"]), event["wh"]))

    # -- tokens --------------------------------------------------------------------------------------------------

    def issue(self, session: bool = True) -> str:
        """A token as login gives it: a JWT, HS256. Two in one second are the same token, as on the real server."""
        at = int(self._now().timestamp())
        claims = {
            "email": self.username.lower(),
            "id": 7,
            "role": "OrganizationAdmin",
            "iat": at,
            "exp": at + int(TOKEN_LIFE.total_seconds()),
        }
        parts = [_base64(json.dumps(part, separators=(",", ":")).encode()) for part in (_JWT_HEADER, claims)]
        signed = ".".join(parts)
        token = signed + "." + _base64(hmac.digest(self._key, signed.encode(), "sha256"))
        if session:
            self._sessions.add(token)
        return token

    def revoke(self) -> None:
        """Every session ends; the fixed token stays."""
        self._sessions.clear()

    def _admit(self, headers: Mapping[str, str], where: str) -> str:
        token = bearer(headers)
        if not token:
            raise Refused("no-bearer", unauthorized(), f"a call without Authorization: Bearer: {where}")
        if token == self.token:
            return token
        if not self._genuine(token):
            raise Refused("", unauthorized(), "")
        if token in self._racing:
            self._racing.discard(token)
            raise Refused("", revoked(), "")
        if token not in self._sessions:
            raise Refused("", revoked(), "")
        return token

    def _genuine(self, token: str) -> bool:
        signed, _, signature = token.rpartition(".")
        wanted = _base64(hmac.digest(self._key, signed.encode(), "sha256"))
        if signed.count(".") != 1 or not hmac.compare_digest(signature.encode(), wanted.encode()):
            return False
        claims = json.loads(base64.urlsafe_b64decode(signed.partition(".")[2] + "=="))
        return bool(claims["exp"] > self._now().timestamp())

    # -- requests ------------------------------------------------------------------------------------------------

    @staticmethod
    def kind(method: str, path: str) -> str:
        """The name under which a request is counted and disturbed."""
        for wanted, pattern, kind in _ROUTES:
            if method == wanted and pattern.fullmatch(path):
                return "drec." + kind
        return "drec.other"

    @staticmethod
    def device_of(method: str, path: str) -> str:
        """The device that a send is for, "" for everything else: one request may be in flight for each."""
        match = _SEND.fullmatch(path) if method == "POST" else None
        return unquote(match[1]).strip().lower() if match else ""

    def handle(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> Answer:
        kind = self.kind(method, path)[len("drec.") :]
        about = f"{method} {path}"
        if len(body) > MAX_BODY:
            self._violations.add(self.name, "T2", "a body above 100 kB", about)
            return json_answer(413, {"statusCode": 413, "message": "request entity too large"})
        if kind == "other":
            return json_answer(404, {"statusCode": 404, "message": f"Cannot {method} /api{path}", "error": "Not Found"})
        try:
            if kind == "login":
                return self._login(headers, body)
            if kind == "legacy":
                # An inherited route without guard or checks: it takes anything and is not where reads belong.
                raise Refused("legacy", Answer(201), "POST /meter-reads/{uuid} must not be used")
            token = self._admit(headers, about)
            match kind:
                case "logout":
                    self._sessions.discard(token)
                    return json_answer(200, {"message": "Logout successful"})
                case "send":
                    about += " " + body[:200].decode("utf-8", "replace")
                    return self._send(path, headers, body)
                case "latest":
                    return self._latest(path)
                case "read":
                    return self._read(path, dict(query_members(query)))
                case "mine":
                    return self._mine(dict(query_members(query)))
                case _:
                    return self._device(path)
        except Refused as refusal:
            if refusal.rule:
                self._violations.add(self.name, refusal.rule, refusal.text, about)
            return refusal.answer

    def _login(self, headers: Mapping[str, str], body: bytes) -> Answer:
        document = self._document(headers, body)
        username, password = document.get("username"), document.get("password")
        if not is_text(username) or username.strip().lower() != self.username.lower() or password != self.password:
            return unauthorized()
        token = self.issue()
        if self.session_race:
            self._racing.add(token)
        return json_answer(200, {"accessToken": token})

    @staticmethod
    def _document(headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """The body; anything that is not sent as JSON counts as no body at all, as in the real framework."""
        if header(headers, "Content-Type").partition(";")[0].strip().lower() != "application/json" or not body:
            return {}
        try:
            document = read_json(body)
        except BadJson as exc:
            text = f"Unexpected token in JSON: {exc}"
            raise Refused("T8", http_error(400, text, "Bad Request"), text) from exc
        if not isinstance(document, dict | list):
            text = "Unexpected token in JSON at position 0"
            raise Refused("T8", http_error(400, text, "Bad Request"), text)
        return document if isinstance(document, dict) else {}

    # -- one read ------------------------------------------------------------------------------------------------

    def _send(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        document = self._document(headers, body)
        _check_shape(document)
        self._check_organization(document)
        state = self._known(_SEND, path)
        reads = document["reads"]
        zone = _zone(document.get("timezone"))
        if not reads:
            # The real server leaves such a request open for ever.
            self._violations.add(self.name, "S1", "reads is empty", shorten(document))
            return Answer(0, delivery="hang")
        parsed = [self._parse(document["type"], item, zone, state.device) for item in reads]
        if len(reads) > 1:
            raise _rule("S2", "can not allow multiple reads simultaneously ")
        factor = UNITS[document["unit"]]
        kind, start, end, value = parsed[0]
        wh = int((value * factor + Decimal("0.5")).to_integral_value(ROUND_FLOOR))
        if wh == 0 and value > 0:
            # Stored as 0 by the real server: the energy is lost without a word.
            self._violations.add(self.name, "S7", "a value below 0.5 Wh is stored as 0", shorten(reads))
        read = Read(kind, start, end, wh)
        self._judge(state, read, str(reads[0]["endtimestamp"]))
        self._store(state, read)
        self._journal(
            {
                "drec_read": {
                    "device": state.device.external_id,
                    "type": read.type,
                    "start": read.start.isoformat() if read.start else None,
                    "end": read.end.isoformat(),
                    "wh": read.wh,
                }
            }
        )
        return Answer(201)

    def _known(self, pattern: re.Pattern[str], path: str) -> State:
        match = pattern.fullmatch(path)
        text = unquote(match[1]) if match else ""
        if not text.strip():
            raise _rule("D5", "id should not be empty")
        state = self._find(text)
        if state is None:
            raise _rule("D5", "Invalid device id")
        return state

    @staticmethod
    def _check_organization(document: Mapping[str, Any]) -> None:
        """A developer may name only the own organisation, as a number."""
        if document.get("organizationId") is None:
            return
        given = document["organizationId"]
        if isinstance(given, Bare) and given == str(ORGANIZATION):
            return
        if isinstance(given, Bare) and not given.lstrip("-").isdigit():
            raise _internal("D2", "organizationId is no whole number")
        if isinstance(given, Bare):
            text = f"No organization found with id {given}"
            raise Refused("D1", http_error(404, text, "Not Found"), text)
        raise _rule("D2", "Organization in measurement is not same as user's organization")

    def _parse(
        self, kind: str, item: Any, zone: ZoneInfo | None, device: Device
    ) -> tuple[str, datetime | None, datetime, Decimal]:
        """The checks of form, dates and sign for one element, in the server's order."""
        if not isinstance(item, dict):
            raise _internal("S3", "an element of reads is no object")
        if kind == "History":
            start, end = _moment(item, "starttimestamp", zone, "H1"), _moment(item, "endtimestamp", zone, "H1")
            return kind, start, end, _check_history(start, end, item, device)
        end = _moment(item, "endtimestamp", zone, "E4")
        if zone is not None and item.get("starttimestamp"):
            _local(item["starttimestamp"], zone)
        return kind, None, end, _check_ongoing(kind, end, item, device, self._now())

    def _judge(self, state: State, read: Read, end_text: str) -> None:
        """Sequence, overlap, energy; raises Refused."""
        if read.type == "History":
            self._judge_history(state, read)
        elif state.read_type is not None and state.read_type != read.type:
            text = f"In this device you can add read for {state.read_type} type but you are sending  {read.type}"
            raise Refused("L1", http_error(404, text, "Not Found"), text)
        elif read.type == "Delta":
            self._judge_delta(state, read, end_text)
        else:
            self._judge_aggregate(state, read, end_text)

    def _judge_delta(self, state: State, read: Read, end_text: str) -> None:
        if state.last is None:
            return  # L5: the first one is a baseline in time and skips the ceiling
        if read.end < state.last:
            text = f"The sent date for reading {end_text} is less than last sent meter read date {iso(state.last)}"
            raise _rule("L2", text)
        self._check_ceiling("L3" if read.end == state.last else "L4", state, read.end, read.wh)

    def _judge_aggregate(self, state: State, read: Read, end_text: str) -> None:
        if state.counter is None:
            self._check_ceiling("A3", state, read.end, read.wh)
            return
        last_end, last_value = state.counter
        if read.end < last_end or read.wh <= last_value:
            text = f"The sent date/value for reading {end_text}/{read.wh} is less than last sent mter read date/value "
            raise _rule("A1", text + f"{iso(last_end)}/{last_value} ")
        self._check_ceiling("A4" if read.end == last_end else "A2", state, read.end, read.wh - last_value)

    def _check_ceiling(self, rule: str, state: State, end: datetime, wh: int) -> None:
        since = state.last if state.last is not None else state.device.created_at
        if state.last is None and state.counter is not None:
            since = state.counter[0]  # the strict reading: the baseline of a counter is a read, too
        hours = abs(end - since).total_seconds() / 3600
        if state.counter is not None and end == state.counter[0]:
            hours = 0.0
        most = ceiling_wh(state.device, hours, self._now())
        if not wh < most:
            raise _rule(rule, f"Failed, MaxEnergy: {_js_number(most)}")

    def _judge_history(self, state: State, read: Read) -> None:
        device, start = state.device, read.start
        assert start is not None, "History was checked to have a start"
        for known_start, known_end, _ in state.history:
            if start <= known_end and read.end >= known_start:
                text = "There are already one or more historical entries for this device which are conflicting "
                raise _rule("H7", text + "current reading start date and/or end date ")
        oldest = _years_later(device.created_at, -3)
        if min(start, read.end) <= oldest or max(start, read.end) >= device.created_at:
            text = "For History Type Reads of devices start time and/or end time should be within 3 year of device "
            raise _rule("H6", text + f"onboarding, ex: device onboarded date: {iso(device.created_at)}")
        hours = (read.end - start).total_seconds() / 3600
        if not read.wh < ceiling_wh(device, hours, self._now()):
            raise _rule("H8", "Failed,read value is greater than from MaxEnergy")

    @staticmethod
    def _store(state: State, read: Read) -> None:
        if read.type == "History" and read.start is not None:
            state.history.append((read.start, read.end, read.wh))
            return
        state.read_type = read.type
        if read.type == "Delta":
            state.reads[read.end] = read.wh
            state.last = read.end
            return
        if state.counter is not None:
            state.reads[read.end] = read.wh - state.counter[1]
            state.last = read.end
        state.counter = (read.end, read.wh)
        state.counters[read.end] = read.wh

    # -- reading back --------------------------------------------------------------------------------------------

    def _latest(self, path: str) -> Answer:
        state = self._known(_LATEST, path)
        if state.read_type is None:
            return json_answer(400, {"statusCode": 400, "message": "Read not found"})
        if state.last is None:
            return json_answer(400, {"statusCode": 400, "message": "Read Not found"})
        return json_answer(200, {"enddate": iso(state.last), "value": state.reads[state.last]})

    def _read(self, path: str, query: Mapping[str, str]) -> Answer:
        if query.get("Month") and not query.get("Year"):
            raise _plain("query", "Year is required when month is given")
        state = self._known(_SEND, path)
        if query.get("readType") == "accumulated" and query.get("accumulationType"):
            return self._accumulated(state, query)
        if query.get("readType") != "meterReads":
            raise _plain("query", "Invalid readType parameter")
        start, end = (_query_moment(query.get(name)) for name in ("start", "end"))
        page = int(query["pagenumber"]) if re.fullmatch(r"\d{1,9}", query.get("pagenumber", ""), re.ASCII) else 0
        if start is None or end is None or page < 1:
            text = "error parsing query: start, end and pagenumber are needed and pagenumber is a number above 0"
            raise _plain("query", text)
        if start == end:
            raise _plain("query", "The given start and end timestamps are the same")
        history = sorted(item for item in state.history if item[0] <= end and item[1] >= start)
        created = state.device.created_at
        ongoing = sorted((at, wh) for at, wh in state.reads.items() if max(start, created) <= at < end)
        pages = math.ceil(max(len(history), len(ongoing)) / READS_PER_PAGE)
        shown = slice((page - 1) * READS_PER_PAGE, page * READS_PER_PAGE)
        answer: dict[str, Any] = {
            "historyread": [
                {"startdate": iso(a), "enddate": iso(b), "value": wh}
                for a, b, wh in (history[shown] if start <= created else [])
            ],
            "ongoing": _intervals(ongoing, shown, max(start, created)),
            "numberOfReads": len(history) + len(ongoing),
            "numberOfPages": pages,
            "currentPageNumber": 0 if pages == 0 else 1 if page > pages else page,
            "timezone": state.device.timezone or "UTC",
        }
        return json_answer(200, answer)

    def _accumulated(self, state: State, query: Mapping[str, str]) -> Answer:
        """Sums by day of a month or by month of a year, in UTC."""
        kind = query["accumulationType"]
        if kind not in ("Monthly", "Yearly") or not query.get("Year") or (kind == "Monthly" and not query.get("Month")):
            raise _plain("query", "Invalid accumulationType")
        wanted = query["Year"] + (f"-{int(query['Month']):02d}" if kind == "Monthly" else "")
        sums: dict[str, int] = {}
        for end, wh in sorted(state.reads.items()):
            if (text := iso(end)).startswith(wanted + "-"):
                sums[text[: 10 if kind == "Monthly" else 7]] = sums.get(text[: 10 if kind == "Monthly" else 7], 0) + wh
        if not sums:
            raise Refused("", json_answer(409, {"statusCode": 409, "message": "No reads found"}), "")
        rows = [{"startTime": at, "value": wh} for at, wh in sums.items()]
        return json_answer(200, {"aggregateType": kind, "accumulatedReads": rows, "timezone": "UTC"})

    def _mine(self, query: Mapping[str, str]) -> Answer:
        devices = [self._device_data(state) for state in self.states.values()]
        if (kw := query.get("capacity", "")) and re.fullmatch(r"\d+(\.\d+)?", kw):
            devices = [device for device in devices if device["capacity"] == float(kw)]
        number = query.get("pagenumber", "")
        if not number:
            return json_answer(200, devices)
        page = max(1, int(number)) if number.isdigit() else 1
        return json_answer(
            200,
            {
                "devices": devices[(page - 1) * DEVICES_PER_PAGE : page * DEVICES_PER_PAGE],
                "currentPage": page,
                "totalPages": math.ceil(len(devices) / DEVICES_PER_PAGE),
                "totalCount": len(devices),
            },
        )

    def _device(self, path: str) -> Answer:
        """By the server's number: an unknown one gives 200 with nothing. By externalId: an unknown one ends in 500."""
        last = unquote(path.rpartition("/")[2])
        if path.startswith("/device/externalId/"):
            state = self._find(last)
            return internal_error() if state is None else json_answer(200, self._device_data(state))
        found = [state for state in self.states.values() if str(state.number) == last]
        return json_answer(200, self._device_data(found[0])) if found else Answer(200)

    def _device_data(self, state: State) -> dict[str, Any]:
        device = state.device
        return {
            "id": state.number,
            "externalId": device.external_id,
            "organizationId": ORGANIZATION,
            "createdAt": iso(device.created_at),
            "commissioningDate": iso(device.commissioned),
            "capacity": device.capacity_kw,
            "yieldValue": device.yield_value if device.yield_value is not None else DEFAULT_YIELD,
            "meterReadtype": state.read_type,
            "timezone": device.timezone,
            "countryCode": "SGP",
            "latitude": "1.305278",
            "longitude": "103.90861",
            "internalexternalId": str(UUID(bytes=hashlib.sha256(device.external_id.encode()).digest()[:16], version=4)),
        }

    def onboard(self, external_id: str, **changes: Any) -> Device:
        """Registers a device or changes it, as an installer would on the platform's own page."""
        state = self.states.get(external_id.strip().lower())
        if state is None:
            long_ago = self._opened - timedelta(days=731)
            device = replace(Device(external_id, self.default_kw, long_ago, long_ago), **changes)
            return self._add(device).device
        state.device = replace(state.device, **changes)
        return state.device


# -- answers -------------------------------------------------------------------------------------------------------


def http_error(status: int, message: str, error: str = "") -> Answer:
    document: dict[str, Any] = {"statusCode": status, "message": message}
    return json_answer(status, document | {"error": error} if error else document)


def unauthorized() -> Answer:
    return http_error(401, "Unauthorized")


def revoked() -> Answer:
    return http_error(401, "Token revoked. Please log in again.", "Unauthorized")


def forbidden() -> Answer:
    return http_error(403, "Forbidden resource", "Forbidden")


def internal_error() -> Answer:
    return http_error(500, "Internal server error")


def leaked() -> Answer:
    """The time-series database's own refusal passed through: a 4xx that is not the client's fault."""
    return http_error(400, "partial write: field type conflict dropped=1")


def _rule(rule: str, message: str) -> Refused:
    """A 409 thrown by the controller or the service: no statusCode in the body."""
    return Refused(rule, json_answer(409, {"success": False, "message": message}), message.strip())


def _plain(rule: str, message: str) -> Refused:
    return Refused(rule, http_error(400, message), message)


def _internal(rule: str, text: str) -> Refused:
    return Refused(rule, internal_error(), text)


# -- checks of one request, in order -------------------------------------------------------------------------------


def _check_shape(document: Mapping[str, Any]) -> None:
    """T9; members that nobody asked for are ignored."""
    messages = []
    if document.get("type") not in TYPES:
        messages.append("type must be one of the following values: " + ", ".join(TYPES))
    if document.get("unit") not in UNITS:
        messages.append("unit must be one of the following values: " + ", ".join(UNITS))
    if document.get("timezone") is not None and not is_text(document["timezone"]):
        messages.append("timezone must be a string")
    if not isinstance(document.get("reads"), list):
        messages.append("reads must be an array")
    if messages:
        answer = json_answer(400, {"statusCode": 400, "message": messages, "error": "Bad Request"})
        raise Refused("T9", answer, "; ".join(messages))


@lru_cache(maxsize=1)
def _zones() -> dict[str, str]:
    return {name.lower(): name for name in available_timezones()}


def _zone(text: str | None) -> ZoneInfo | None:
    if text is None or not text.strip():
        return None
    name = _zones().get(text.strip().lower())
    if name is None:
        raise _rule("Z1", f"Invalid time zone: {text.strip()}")
    return ZoneInfo(name)


def _local(text: object, zone: ZoneInfo) -> datetime:
    """Z2: with a timezone member moments are local, without T and Z."""
    message = f"Invalid date sent  {text}"
    if not is_text(text) or not _LOCAL_FORM.fullmatch(text):
        raise _rule("Z2", message + " please sent valid date, format for dates is YYYY-MM-DD hh:mm:ss")
    try:
        return datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC)
    except ValueError as exc:
        raise _rule("Z2", message) from exc


def _moment(item: Mapping[str, Any], name: str, zone: ZoneInfo | None, rule: str) -> datetime:
    """S3, S8, Z2, and E4 or H1: without a timezone member only the forms with Z or an offset are safe."""
    text = item.get(name)
    if name in item and text is None:
        return _EPOCH  # null turns into 1970 on the way and fails a later rule: S4, H5
    if text is None or text == "":
        raise _internal("S3" if name == "endtimestamp" else "S8", f"{name} is missing")
    if zone is not None:
        return _local(text, zone)
    if is_text(text) and _UTC_FORM.fullmatch(text):
        with suppress(ValueError, OverflowError):
            return datetime.fromisoformat(text).astimezone(UTC)
    elif isinstance(text, Bare) or (is_text(text) and re.match(r"\d{4}(-\d\d){1,2}", text)):
        # Some of these pass on the real server, read in its own zone or as milliseconds: right by luck only.
        which = " Invalid Start Date and/or End Date" if rule == "H1" else " Invalid  End Date"
        form = "YYYY-MM-DDThh:mm:ss.millisecondsZ example 2022-10-18T11:35:27.640Z "
        raise _rule(rule, f"{which}, valid format is  {form}")
    raise _internal("S3" if name == "endtimestamp" else "S8", f"{name} is no moment: {text}")


def _value(item: Mapping[str, Any]) -> Decimal:
    """null counts as 0, as in the server's language; a number in quotes does not count."""
    if "value" in item and item["value"] is None:
        return Decimal(0)
    value = item.get("value")
    if not isinstance(value, Bare) or not _JSON_NUMBER.fullmatch(value) or abs(Decimal(value)) > MAX_VALUE:
        raise _internal("S5", "value is missing or no number")
    return Decimal(value)


def _check_ongoing(kind: str, end: datetime, item: Mapping[str, Any], device: Device, now: datetime) -> Decimal:
    said = item["endtimestamp"] if item["endtimestamp"] is not None else "null"
    text = f"One or more measurements endtimestamp {said} "
    if end <= device.created_at:
        rule = "E1" if item["endtimestamp"] is not None else "S4"
        raise _rule(rule, text + f"is less than or equal to device onboarding date {iso(device.created_at)}")
    if end <= device.commissioned:
        raise _rule("E2", text + f"should be greater than to device commissioningDate date{iso(device.commissioned)}")
    if end > now:
        raise _rule("E3", text + f"is greater than current date {iso(now)}")
    value = _value(item)
    if kind == "Delta" and value <= 0:
        raise _rule("S6", "meter read value should be greater then 0 ")
    if value < 0:
        raise _internal("S6", "a counter below 0")
    return value


def _check_history(start: datetime, end: datetime, item: Mapping[str, Any], device: Device) -> Decimal:
    if start > end:
        text = (
            "starttimestamp should be prior to endtimestamp. One or more measurements starttimestamp is greater than "
        )
        raise _rule("H2", text + "endtimestamp ")
    if max(start, end) > device.created_at:
        text = "For History reading start timestamp and end timestamp should be prior to device onboarding date. "
        raise _rule("H3", text + f"The device was onboarded on {iso(device.created_at)}")
    value = _value(item)
    if value <= 0:
        raise _rule("H4", "meter read value should be greater then 0 ")
    for name, at, words in (
        ("starttimestamp", start, "Commissioning Date"),
        ("endtimestamp", end, "commissioningDate date"),
    ):
        if at <= device.commissioned:
            text = (
                f"One or more measurements {name} should be greater than to device {words} {iso(device.commissioned)}"
            )
            raise _rule("H5", text)
    return value


# -- small things --------------------------------------------------------------------------------------------------

_JWT_HEADER = {"alg": "HS256", "typ": "JWT"}
_SEND = re.compile(r"/meter-reads/new/([^/]*)")
_LATEST = re.compile(r"/meter-reads/latestread/([^/]*)")
_ROUTES: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("POST", re.compile(r"/auth/login"), "login"),
    ("POST", re.compile(r"/auth/logout"), "logout"),
    ("POST", _SEND, "send"),
    ("GET", _SEND, "read"),
    ("GET", _LATEST, "latest"),
    ("POST", re.compile(r"/meter-reads/[^/]+"), "legacy"),
    ("GET", re.compile(r"/device/my"), "mine"),
    ("GET", re.compile(r"/device/(externalId/)?[^/]+"), "device"),
)


def _intervals(ongoing: list[tuple[datetime, int]], shown: slice, first: datetime) -> list[dict[str, Any]]:
    """As the real server does it: the first startdate of a page is wrong, only enddate can be trusted."""
    rows: list[dict[str, Any]] = []
    before = first if shown.start == 0 else ongoing[max(0, shown.start - READS_PER_PAGE)][0] if ongoing else first
    for end, wh in ongoing[shown]:
        rows.append({"startdate": iso(before), "enddate": iso(end), "value": wh})
        before = end
    return rows


def _query_moment(text: str | None) -> datetime | None:
    if not text or not _UTC_FORM.fullmatch(text.replace(" ", "+")):
        return None
    try:
        return datetime.fromisoformat(text.replace(" ", "+")).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _years_later(at: datetime, years: int) -> datetime:
    """The same day of another year; February 29 becomes March 1, as JavaScript's setFullYear does it."""
    try:
        return at.replace(year=at.year + years)
    except ValueError:
        return at.replace(year=at.year + years, month=3, day=1)


def _years(since: datetime, now: datetime) -> float:
    """Whole years and the part of the year that has begun; below 0 before `since`."""
    whole = now.year - since.year
    if _years_later(since, whole) > now:
        whole -= 1
    begun, ends = _years_later(since, whole), _years_later(since, whole + 1)
    return whole + (now - begun) / (ends - begun)


def _js_number(number: float) -> str:
    """As JavaScript prints it: a whole number has no fraction."""
    return str(int(number)) if number == int(number) else repr(number)


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
