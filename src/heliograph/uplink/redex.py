"""REDEX public API v2. What is known, and how well, stands in the platform sheet; its sections are cited as (§6.2).

A 2xx means taken for processing, not stored (§7): such days are `accepted` until the process or a read-back confirms
them. Sending a day twice may count it twice (§9 rule 3), so whatever is unclear is read back first.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any, Literal

from heliograph.core import figures
from heliograph.core.delivery import DayRow, Missing, Note, Parcel, ReadBack, State, Stored, Unknown, Verdict
from heliograph.core.errors import ConfigError
from heliograph.uplink.http import Answer, Exchange, Http, fault, portal
from heliograph.uplink.tokens import TOKEN_WAIT, Authorized, TokenSource

QUERY = "/public/v2/generation-datas"
STATUSES = ("/public/v2/generation-datas/statuses", "/public/v2/generation-datas/status")
MAX_RECORDS = 3000


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the platform wants its days: the keys of §10. Never changed once days were accepted, it might count twice."""

    path_single: str = "/public/v2/generation-datas"
    path_batch: str | None = "/public/v2/generation-datas/batches"
    path_query: str = QUERY
    """Read-back; the older dialect has no such call of its own (§5.4)."""
    path_status: tuple[str, ...] = STATUSES
    """Tried in this order; the one that answers is remembered."""
    accumulated_field: str = "AccumulatedEnergyInKWh"
    send_frequency_type: bool = False
    decimals: int = 3
    value_encoding: Literal["string", "number"] = "string"
    max_records: int = MAX_RECORDS
    """Over all inverters of one request."""

    def __post_init__(self) -> None:
        if self.decimals not in (3, 4):
            raise ConfigError(f"decimals = {self.decimals}", hint="Write 3 or 4; fewer would lose Wh.")
        if not 1 <= self.max_records <= MAX_RECORDS:
            raise ConfigError(f"max_records = {self.max_records}", hint=f"Write 1 to {MAX_RECORDS}.")
        if self.value_encoding not in ("string", "number"):
            raise ConfigError(f'value_encoding = "{self.value_encoding}"', hint='Write "string" or "number".')


DIALECTS: dict[str, Dialect] = {
    "grouped-2024": Dialect(),
    "legacy": Dialect(
        path_single="/public/v2/generation-data",
        path_batch=None,
        path_status=(),
        accumulated_field="AccumulatedPowerInKWh",
        send_frequency_type=True,
        decimals=4,
    ),
}


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a status says about everything a request carried."""

    state: State
    remedy: str
    wait: timedelta | None = None
    pause_all: bool = False


# None of these says anything about a day: the account, the address or the quota is at fault, so the days stay due and
# nothing more leaves. A changed file, setting or account is found at the next try; nothing has to be released.
LATER = timedelta(hours=1)
MEANINGS: dict[int, Meaning] = {
    401: Meaning("due", "Check the token, or api_key, client_id and client_secret.", TOKEN_WAIT, True),
    403: Meaning("due", "The account may not send these; ask the platform for its state and rights.", LATER, True),
    404: Meaning("due", "Check base_url, dialect and paths; other paths are not guessed.", LATER, True),
    405: Meaning("due", "Check dialect and paths; other paths are not guessed.", LATER, True),
}
READ_BACK = "The days are read back before anything is sent again."

# What one refused record may cost (§9 rule 14): requests from the first refusal on, the first included.
BISECT_LIMIT = 12
BISECTED = (400, 422)
# More than any number of parts: an inverter that shares no request.
ALONE = 2**20
_MARK = re.compile(r"R\d{3}/(\d+)/(\d+)")

# Days per query: one page of 50 items (§9 rule 24), well within three months (§5.4).
WINDOW_DAYS = 50
PAGE_ITEMS = 50
PAGES = 20
WINDOWS = 8


@dataclass(slots=True)
class Incident:
    """The search for the record a request was refused for. A restart forgets it; the marks on the rows remain."""

    requests: int = 0
    accepted: bool = False
    """Whether any part of it was taken."""
    closed: bool = False
    """The record was found, or the requests are used up: what is left is sent as if nothing had been."""


class Redex:
    """Days of many inverters in one request, followed by process id, read back per inverter."""

    ordered = False

    def __init__(
        self,
        name: str,
        http: Http,
        dialect: Dialect,
        tokens: TokenSource,
        now: Callable[[], datetime],
        *,
        absent_after: timedelta = timedelta(hours=1),
    ) -> None:
        """`absent_after`: the only process time ever published is eight and a half minutes (§7)."""
        self.name = name
        self.absent_after = absent_after
        self.tokens = tokens
        self._http = http
        self._dialect = dialect
        self._api = Authorized(http, tokens, now)
        self._now = now
        self._most = dialect.max_records
        self._status_path: str | None = None
        self._incidents: dict[int, Incident] = {}
        self._refused: set[str] = set()
        self._barren: set[str] = set()
        """Inverters that were refused since anything was accepted."""

    # Packing

    def prepare(self, rows: Sequence[DayRow]) -> Mapping[int, Verdict]:
        """Nothing is known before an answer."""
        del rows
        return {}

    def notes(self) -> Sequence[Note]:
        return ()

    def pack(self, rows: Sequence[DayRow]) -> Parcel | None:
        """The first rows that fit into one request; half of a refused request while its faulty record is looked for.

        What may spoil a request for others goes after them and apart.
        """
        marked = [row for row in rows if self._incident(row) is not None]
        if marked:
            return self._parcel(self._suspects(marked)[: self._most])
        apart = {row.remote_id: 0 for row in rows}
        for row in rows:
            apart[row.remote_id] = max(apart[row.remote_id], self._apart(row))
        together = min(apart.values(), default=0)
        chosen: list[DayRow] = []
        pairs: set[tuple[str, date]] = set()
        for row in rows:
            if apart[row.remote_id] != together:
                continue
            alone = self._dialect.path_batch is None or together == ALONE
            if len(chosen) == self._most or (alone and chosen and row.remote_id != chosen[0].remote_id):
                break
            if (row.remote_id, row.day) not in pairs:  # never one pair twice in one request (§9 rule 3)
                pairs.add((row.remote_id, row.day))
                chosen.append(row)
        return self._parcel(chosen) if chosen else None

    def _apart(self, row: DayRow) -> int:
        """Rows with the same number may share a request: 0 unless one like it came to nothing before.

        An inverter that was refused goes alone. A request that got no good answer twice may have had one inverter in it
        that the platform always fails on: the third time it leaves in two parts, then in four, and so on.
        """
        if row.remote_id in self._refused:
            return ALONE
        if row.last_rule != "absent" or row.attempt < 2:
            return 0
        return 1 + zlib.crc32(row.remote_id.encode()) % (1 << min(row.attempt - 1, 10))

    def _suspects(self, marked: Sequence[DayRow]) -> Sequence[DayRow]:
        """What to try next of one incident: the narrowest part that is known to hold the fault, halved.

        A half that is accepted leaves the other half as the narrowest part, so it is never tried as a whole.
        """
        first = _mark(marked[0])
        same = [row for row in marked if (mark := _mark(row)) and first and mark[0] == first[0]]
        deepest = max(mark[1] for row in same if (mark := _mark(row)))
        part = [row for row in same if (mark := _mark(row)) and mark[1] == deepest]
        incident = self._incident(part[0])
        last = incident is not None and incident.requests >= BISECT_LIMIT - 1
        return part if last else _half(part)

    def _parcel(self, rows: Sequence[DayRow]) -> Parcel:
        dialect = self._dialect
        inverters: dict[str, list[str]] = {}
        for row in rows:
            inverters.setdefault(row.remote_id, []).append(self._record(row))
        if dialect.path_batch is not None:
            entries = ",".join(
                f'{{"RemoteInvId":{json.dumps(id)},"Data":[{",".join(records)}]}}' for id, records in inverters.items()
            )
            return Parcel(dialect.path_batch, f'{{"Devices":[{entries}]}}'.encode(), tuple(rows))
        ((id, records),) = inverters.items()
        frequency = '"FrequencyType":"Daily",' if dialect.send_frequency_type else ""
        body = f'{{"Data":[{",".join(records)}],{frequency}"RemoteInvId":{json.dumps(id)}}}'
        return Parcel(dialect.path_single, body.encode(), tuple(rows))

    def _record(self, row: DayRow) -> str:
        """Written by hand: json cannot write a decimal as a bare number without going through a float."""
        quote = '"' if self._dialect.value_encoding == "string" else ""
        period, total = (figures.kwh(wh, self._dialect.decimals) for wh in (row.period_wh, row.total_wh))
        return (
            f'{{"Timestamp":"{row.day.isoformat()}","PeriodProductionInKWh":{quote}{period}{quote},'
            f'"{self._dialect.accumulated_field}":{quote}{total}{quote}}}'
        )

    # Sending

    def send(self, parcel: Parcel) -> Mapping[int, Verdict]:
        found = self._exchange("POST", parcel.path, body=parcel.body)
        incident = self._incident(parcel.rows[0])
        if incident is not None:
            incident.requests += 1
        if not isinstance(found, Answer):
            return _same(parcel.rows, fault(found))
        if found.status in BISECTED:
            return self._refusal(found, parcel.rows, incident)
        if found.status == 413:
            return self._too_large(found, parcel.rows)
        verdict = self._judge(found)
        if verdict.state == "accepted":
            self._refused -= {row.remote_id for row in parcel.rows}
            self._barren.clear()
            if incident is not None:
                incident.accepted = True
                incident.closed = incident.requests >= BISECT_LIMIT
        return _same(parcel.rows, verdict)

    def _judge(self, answer: Answer) -> Verdict:
        """What an answer to a send means for all of it. Status and shape must both fit before a day counts as taken."""
        envelope = _envelope(answer)
        if envelope is not None:
            return Verdict("accepted", f"R{answer.status}", process_id=_process_id(envelope.get("Data")))
        return self._trouble(answer)

    def _trouble(self, answer: Answer) -> Verdict:
        """What an answer that is not the wanted one means, whatever was asked."""
        if answer.status == 429:
            return self._rate_limit(answer)
        if answer.status in MEANINGS:
            meaning = MEANINGS[answer.status]
            rule = f"R{answer.status}"
            words, token = answer.words(), answer.status == 401
            pause = meaning.pause_all
            return Verdict(meaning.state, rule, words, meaning.remedy, meaning.wait, pause_all=pause, token=token)
        if (verdict := portal(answer)) is not None:
            return verdict
        rule = "shape" if answer.success else f"R{answer.status}"
        return Verdict("unclear", rule, answer.words(), READ_BACK, answer.retry_after(self._now()))

    def _rate_limit(self, answer: Answer) -> Verdict:
        """Retry-After; other gateways of the account wait as well, so chance comes on top of it in the pause (§8)."""
        remedy = "The account's quota of requests is used up, perhaps by other gateways; it is tried again by itself."
        asked = answer.retry_after(self._now())
        return Verdict("due", "R429", answer.words(), remedy, asked, pause_all=True, busy=True)

    def _too_large(self, answer: Answer, rows: Sequence[DayRow]) -> Mapping[int, Verdict]:
        """The limit in bytes is not published (§9 rule 33), so it is found."""
        if len(rows) == 1:
            return _same(
                rows, Verdict("rejected", "R413", answer.words(), "Ask the platform why one day is too large.")
            )
        self._most = max(1, len(rows) // 2)
        return _same(rows, Verdict("due", "R413", answer.words(), f"Sent again in requests of {self._most} days."))

    def _refusal(self, answer: Answer, rows: Sequence[DayRow], incident: Incident | None) -> Mapping[int, Verdict]:
        """A 4xx of this kind stored nothing (§9 rule 14): narrow down which record is to blame.

        By inverter, then by day. Another day of an inverter that already had one refused is not looked for one by
        one: the refused part is held in one piece, for then it is mostly the inverter that is unknown or not in force.
        """
        rule, words = f"R{answer.status}", answer.words()
        number, level = (_mark(rows[0]) or (rows[0].id, 0)) if incident is not None else (rows[0].id, 0)
        if incident is None:
            incident = Incident(requests=1)
            if len(rows) > 1:
                self._remember(number, incident)
        if len(rows) == 1:
            incident.closed = True
            self._refused.add(rows[0].remote_id)
            remedy = f"Check that {rows[0].remote_id} is registered and in force on {rows[0].day}."
            self._barren.add(rows[0].remote_id)
            if level == 0 or incident.accepted or len(self._barren) == 1:
                return _same(rows, Verdict("rejected", rule, words, remedy))
            remedy += " Nothing else was accepted either; check dialect and account."
            return _same(rows, Verdict("rejected", rule, words, remedy, LATER, pause_all=True))
        inverters = {row.remote_id for row in rows}
        if incident.requests >= BISECT_LIMIT or (len(inverters) == 1 and inverters <= self._refused):
            incident.closed = incident.requests >= BISECT_LIMIT
            remedy = f"The platform refuses something in these {len(rows)} days; check the registration."
            return _same(rows, Verdict("held", rule, words, remedy))
        remedy = "Sent again in parts, to find the record that is refused."
        return _same(rows, Verdict("due", f"{rule}/{number}/{level + 1}", words, remedy, at_once=True))

    def _incident(self, row: DayRow) -> Incident | None:
        """The open search a row belongs to. After a restart one is opened anew from the mark on the row."""
        mark = _mark(row)
        if mark is None:
            return None
        incident = self._incidents.get(mark[0])
        if incident is None:
            incident = self._remember(mark[0], Incident(requests=mark[1]))
        return None if incident.closed else incident

    def _remember(self, number: int, incident: Incident) -> Incident:
        while len(self._incidents) >= 100:
            del self._incidents[next(iter(self._incidents))]
        self._incidents[number] = incident
        return incident

    # Following up

    def follow(self, rows: Sequence[DayRow]) -> Mapping[int, Verdict]:
        """`statuses` first, on 404 `status` once (§7); a failed process is unclear, for it has no reason field."""
        process = rows[0].process_id if rows else None
        if not process:
            return {}
        paths = (self._status_path,) if self._status_path else self._dialect.path_status
        for path in paths:
            found = self._exchange("GET", path, query={"ProcessId": process})
            if isinstance(found, Answer) and found.status == 404:
                continue
            if not isinstance(found, Answer):
                return _same(rows, replace(fault(found), state="accepted"))
            if (envelope := _envelope(found)) is None:
                return _same(rows, replace(self._trouble(found), state="accepted"))
            self._status_path = path
            return self._process(rows, process, envelope.get("Data"))
        self._status_path = None
        text = f"the platform does not know process {process}"
        return _same(rows, Verdict("unclear", "P404", text, READ_BACK)) if paths else {}

    @staticmethod
    def _process(rows: Sequence[DayRow], process: str, data: Any) -> Mapping[int, Verdict]:
        """An object or a list of them (§9 rule 18); only the entry with our id counts."""
        for entry in data if isinstance(data, list) else [data]:
            if not isinstance(entry, dict) or str(entry.get("ProcessId", "")) != process:
                continue
            match entry.get("Status"):
                case "Success":
                    return _same(rows, Verdict("confirmed", "P-Success"))
                case "Failed":
                    text = f"process {process} failed; the platform gives no reason"
                    return _same(rows, Verdict("unclear", "P-Failed", text, READ_BACK))
        return {}

    # Reading back

    def ask(self, rows: Sequence[DayRow]) -> Mapping[int, ReadBack]:
        """Rows beyond the first few windows are left out of the answer; they are asked about next time."""
        found: dict[int, ReadBack] = {}
        for window in list(_windows(rows))[:WINDOWS]:
            stored = self._stored(window)
            for row in window:
                if isinstance(stored, Verdict):
                    found[row.id] = Unknown(replace(stored, state="held" if stored.state == "held" else _still(row)))
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
            answer = self._exchange("GET", self._dialect.path_query, query={**query, "CurrentPage": str(page)})
            if not isinstance(answer, Answer):
                return fault(answer)
            if answer.status in (404, 405):
                remedy = "This platform has no read-back: look the days up by hand; retry the missing with --not-there."
                return Verdict("held", f"B{answer.status}", answer.words(), remedy)
            envelope = _envelope(answer)
            data = envelope.get("Data") if envelope is not None else None
            data = [] if envelope is not None and data is None else data
            if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
                return self._trouble(answer)
            repeated = bool(data) and data == before
            entries += [] if repeated else data
            before = data
            meta = envelope.get("Meta") if envelope is not None else None
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

    def _exchange(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Exchange:
        return self._api.exchange(method, path, query=query, body=body)

    def room(self) -> float:
        return self._http.room()

    def date(self) -> datetime | None:
        return self._http.date()

    def token_until(self) -> datetime | None:
        return self.tokens.expiry() if self.tokens.by_hand else None

    def token_changed(self) -> bool:
        return self.tokens.changed()

    def close(self) -> None:
        self._http.close()


def dialect(name: str, **keys: Any) -> Dialect:
    """A preset with single keys overridden; `path_batch = ""` means that there is none."""
    if name not in DIALECTS:
        raise ConfigError(f'no dialect "{name}"', hint=f"Write one of: {', '.join(DIALECTS)}.")
    given = {key: value for key, value in keys.items() if value is not None}
    if given.get("path_batch") == "":
        given["path_batch"] = None
    return replace(DIALECTS[name], **given)


def _same(rows: Sequence[DayRow], verdict: Verdict) -> dict[int, Verdict]:
    return {row.id: verdict for row in rows}


def _still(row: DayRow) -> State:
    """The state of a row about which nothing more could be learnt."""
    return "accepted" if row.state == "accepted" else "unclear"


def _envelope(answer: Answer) -> Mapping[str, Any] | None:
    """The envelope of §1.1 that says itself that all went well. Errors may be null, empty or absent (§9 rule 20)."""
    found = answer.json
    if not answer.success or not isinstance(found, dict):
        return None
    status = found.get("StatusCode")
    if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status < 300 or found.get("Errors"):
        return None
    return found


def _process_id(data: Any) -> str | None:
    """`Data.ProcessId`, then `Data.Id`, then a bare integer (§9 rule 17)."""
    for value in (data.get("ProcessId"), data.get("Id")) if isinstance(data, dict) else (data,):
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value.isdecimal():
            return value
    return None


def _mark(row: DayRow) -> tuple[int, int] | None:
    """Number and depth of the search a row belongs to, from a rule such as R422/17/3."""
    match = _MARK.fullmatch(row.last_rule)
    return (int(match[1]), int(match[2])) if match else None


def _half(rows: Sequence[DayRow]) -> Sequence[DayRow]:
    """The first half of the inverters; of one inverter, the first half of its days."""
    inverters = list(dict.fromkeys(row.remote_id for row in rows))
    if len(inverters) == 1:
        return rows[: max(1, len(rows) // 2)]
    first = set(inverters[: len(inverters) // 2])
    return [row for row in rows if row.remote_id in first]


def _windows(rows: Sequence[DayRow]) -> Iterator[list[DayRow]]:
    window: list[DayRow] = []
    for row in sorted(rows, key=lambda row: row.day):
        if window and (row.day - window[0].day).days >= WINDOW_DAYS:
            yield window
            window = []
        window.append(row)
    if window:
        yield window


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
        return Unknown(Verdict(_still(row), "B-pages", "the platform did not give all the rows it counts", READ_BACK))
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
