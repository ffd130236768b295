"""REDEX public API v2. What is known, and how well, stands in the platform sheet; its sections are cited as (§6.2).

A 2xx means taken for processing, not stored (§7): such days are `accepted` until the process or a read-back confirms
them. Sending a day twice may count it twice (§9 rule 3), so whatever is unclear is read back first.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal

from heliograph.core import figures
from heliograph.core.delivery import DayRow, Note, Parcel, ReadBack, Registered, Roll, Unknown, Verdict
from heliograph.core.errors import ConfigError
from heliograph.uplink.http import Answer, Exchange, Http, fault
from heliograph.uplink.redex_answers import READ_BACK, envelope, process_id, same, trouble
from heliograph.uplink.redex_groups import Groups
from heliograph.uplink.redex_reads import Reads
from heliograph.uplink.redex_search import STATUSES, Search
from heliograph.uplink.tokens import Authorized, TokenSource

QUERY = "/public/v2/generation-datas"
STATUS_PATHS = ("/public/v2/generation-datas/statuses", "/public/v2/generation-datas/status")
MAX_RECORDS = 3000
# More than any number of parts: an inverter that shares no request.
ALONE = 2**20
UNKNOWN = "Register the inverter there under this name (RemoteInvId), or correct report_as."
DECLINED = "Ask REDEX why. The days stay due, and leave by themselves once the group is in force again."


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the platform wants its days: the keys of §10. Never changed once days were accepted, it might count twice."""

    path_single: str = "/public/v2/generation-datas"
    path_batch: str | None = "/public/v2/generation-datas/batches"
    path_query: str = QUERY
    """Read-back; the older dialect has no such call of its own (§5.4)."""
    path_status: tuple[str, ...] = STATUS_PATHS
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
        chance: Callable[[], float] = random.random,
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
        self._search = Search()
        self._reads = Reads(self._exchange, dialect.path_query, now)
        self._groups = Groups(self._exchange, chance)
        self._ours: set[str] = set()

    # Packing

    def prepare(self, rows: Sequence[DayRow]) -> Mapping[int, Verdict]:
        """Takes out the inverters of a declined group, after a look at them when it is time."""
        now = self._now()
        urgent = any(row.last_rule == "declined" for row in rows)
        if (verdict := self._groups.refresh(now, calm=not rows, urgent=urgent)) is not None:
            # Its rule stays, for a search may depend on it.
            return {row.id: replace(verdict, state="due", rule=row.last_rule or verdict.rule) for row in rows[:1]}
        found: dict[str, tuple[int, Verdict]] = {}
        for row in rows:
            self._ours.add(row.remote_id)
            # The oldest day keeps the later ones of its inverter back.
            if row.remote_id not in found and (group := self._groups.declined(row.remote_id)) is not None:
                text = f"REDEX has declined the group {group.name}; nothing is sent for its inverters"
                verdict = Verdict("due", "declined", text, DECLINED, self._groups.wait(now))
                found[row.remote_id] = row.id, verdict
        return dict(found.values())

    def notes(self) -> Sequence[Note]:
        return tuple(self._groups.notes(self._ours))

    def pack(self, rows: Sequence[DayRow]) -> Parcel | None:
        """The first rows that fit into one request; half of a refused request while its faulty record is looked for.

        What may spoil a request for others goes after them and apart.
        """
        suspects, rows = self._search.choose(rows, self._now())
        if suspects and self._dialect.path_batch is None:  # it may have been taken away while a search was under way
            suspects = [row for row in suspects if row.remote_id == suspects[0].remote_id]
        if suspects:
            return self._parcel(suspects[: self._most])
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
        that the platform always fails on: the third time it leaves in four parts, then in sixteen, and so on.
        """
        if self._search.alone(row):
            return ALONE
        if row.last_rule != "absent" or row.attempt < 2:
            return 0
        return 1 + zlib.crc32(row.remote_id.encode()) % (1 << min(2 * row.attempt - 2, 10))

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
        self._search.asked(parcel.rows)
        if isinstance(found, Answer) and found.status in (403, 422):
            self._groups.doubt(self._now())
        if not isinstance(found, Answer):
            return same(parcel.rows, fault(found))
        if found.status in STATUSES:
            return self._search.refused(f"R{found.status}", found.words(), parcel.rows, self._now())
        if found.status == 413:
            return self._too_large(found, parcel.rows)
        verdict = self._judge(found)
        if verdict.state == "accepted":
            self._search.taken(parcel.rows, self._now())
        return same(parcel.rows, verdict)

    def _judge(self, answer: Answer) -> Verdict:
        """What an answer to a send means for all of it. Status and shape must both fit before a day counts as taken."""
        said = envelope(answer)
        if said is None:
            return trouble(answer, self._now())
        # Without a path to follow it up, a process is of no use: the days are read back instead.
        process = process_id(said.get("Data")) if self._dialect.path_status else None
        return Verdict("accepted", f"R{answer.status}", process_id=process)

    def _too_large(self, answer: Answer, rows: Sequence[DayRow]) -> Mapping[int, Verdict]:
        """The limit in bytes is not published (§9 rule 33), so it is found."""
        if len(rows) == 1:
            return same(rows, Verdict("rejected", "R413", answer.words(), "Ask the platform why one day is too large."))
        self._most = max(1, len(rows) // 2)
        return same(rows, Verdict("due", "R413", answer.words(), f"Sent again in requests of {self._most} days."))

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
                return same(rows, replace(fault(found), state="accepted"))
            if (said := envelope(found)) is None:
                return same(rows, replace(trouble(found, self._now()), state="accepted"))
            self._status_path = path
            return self._process(rows, process, said.get("Data"))
        self._status_path = None
        text = f"the platform does not know process {process}"
        return same(rows, Verdict("unclear", "P404", text, READ_BACK)) if paths else {}

    @staticmethod
    def _process(rows: Sequence[DayRow], process: str, data: Any) -> Mapping[int, Verdict]:
        """An object or a list of them (§9 rule 18); only the entry with our id counts."""
        for entry in data if isinstance(data, list) else [data]:
            if not isinstance(entry, dict) or str(entry.get("ProcessId", "")) != process:
                continue
            match entry.get("Status"):
                case "Success":
                    return same(rows, Verdict("confirmed", "P-Success"))
                case "Failed":
                    text = f"process {process} failed; the platform gives no reason"
                    return same(rows, Verdict("unclear", "P-Failed", text, READ_BACK))
        return {}

    def ask(self, rows: Sequence[DayRow]) -> Mapping[int, ReadBack]:
        return self._reads.ask(rows)

    def look_up(self, remote_ids: Sequence[str]) -> Roll:
        """By the lists of the account's groups; what they do not show, by asking for its days of yesterday."""
        listed = self._groups.listed(set(remote_ids), self._now())
        if isinstance(listed, Verdict):
            return Roll(trouble=listed)
        found: list[Registered] = []
        for remote_id in remote_ids:
            if remote_id in listed:
                found.append(listed[remote_id])
                continue
            asked = self._asked_by_name(remote_id)
            if isinstance(asked, Verdict):
                return Roll(tuple(found), asked)
            found.append(asked)
        return Roll(tuple(found))

    def _asked_by_name(self, remote_id: str) -> Registered | Verdict:
        day = self._now().astimezone(UTC).date() - timedelta(days=1)
        start = datetime.combine(day, time(), UTC)
        row = DayRow(0, "", remote_id, day, start, start + timedelta(days=1), 0, 0)
        answer = self._reads.ask([row]).get(0)
        if not isinstance(answer, Unknown):
            return Registered(remote_id, True, text="No list of groups shows it, but its days can be asked for.")
        verdict = answer.verdict
        if verdict.rule in ("B400", "B422"):
            return Registered(remote_id, False, text=f"{verdict.text}. {UNKNOWN}")
        return verdict if verdict.pause_all else Registered(remote_id, None, text=verdict.text)

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
