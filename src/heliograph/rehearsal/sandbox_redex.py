"""A stand-in for REDEX v2 as its public pages describe it, stricter where they are silent. No sockets here.

Where the documents leave the outcome open (a day sent twice, a falling total, today's day) this platform refuses:
a gateway that passes here does not depend on leniency. A request is taken as a whole or not at all.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from typing import Any, Literal, TypeVar
from uuid import UUID

from heliograph.rehearsal.sandbox_exchange import (
    Answer,
    BadJson,
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
from heliograph.rehearsal.sandbox_redex_rules import (
    GROUPED,
    LEGACY,
    Dialect,
    Entry,
    Inverter,
    Problem,
    Record,
    Series,
    day_problems,
    member_problems,
    read_batch,
    read_day,
    read_single,
    sum_problems,
)

PREFIX = "/public/"
MAX_RECORDS = 3000
MAX_ERRORS = 20
TOKEN_LIFE = timedelta(seconds=3600)
REFRESH_LIFE = timedelta(seconds=2_592_000)
PAGE_DEFAULT, PAGE_MAX = 50, 100
EARLIEST_ZONE = timezone(timedelta(hours=14))
"""Where a day ends first on earth; used where no zone is set, so that no finished day is refused."""

Outcome = Literal["Success", "Failed", "half"]
_T = TypeVar("_T")


@dataclass(slots=True)
class Process:
    id: int
    created: datetime
    ready: datetime
    outcome: Outcome
    records: list[Record]
    settled: bool = False

    def status(self, now: datetime) -> str:
        if self.settled:
            return "Success" if self.outcome == "Success" else "Failed"
        return "New" if now - self.created < (self.ready - self.created) / 2 else "Processing"


class Window:
    """A fixed window: `limit` requests for a key in each `seconds` that begin at a multiple of `seconds`."""

    def __init__(self, limit: int, seconds: int) -> None:
        self.limit = limit
        self.seconds = seconds
        self._counts: dict[str, tuple[int, int]] = {}

    def take(self, key: str, now: datetime) -> int:
        """0 where the request may pass, else the whole seconds until the window ends."""
        at = now.timestamp()
        window = int(at // self.seconds)
        seen, count = self._counts.get(key, (window, 0))
        count = count + 1 if seen == window else 1
        self._counts[key] = (window, count)
        return 0 if count <= self.limit else max(1, math.ceil((window + 1) * self.seconds - at))


Query = dict[str, str]


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    now: datetime


class Redex:
    """`handle` is the platform. Options that vary between real servers are attributes and may be set at any time."""

    name = "redex"

    def __init__(
        self,
        now: Callable[[], datetime],
        violations: Violations,
        *,
        token: str,
        seed: int = 0,
        zone: tzinfo = EARLIEST_ZONE,
        processing_delay: timedelta = timedelta(seconds=2),
        inverters: Iterable[Inverter] = (),
        open_registration: bool = True,
        api_key: str = "sandbox-api-key",
        client_id: str = "sandbox-client",
        client_secret: str = "sandbox-secret",
        journal: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self._now = now
        self._violations = violations
        self._seed = seed
        self._journal = journal
        self.token = token
        self.zone = zone
        self.processing_delay = processing_delay
        self.inverters = {inverter.remote_id: inverter for inverter in inverters}
        self.open_registration = open_registration
        self.credentials = {"ApiKey": api_key, "ClientId": client_id, "ClientSecret": client_secret}
        self.process_ids = True
        """False: the send answers carry an empty object, as PROD did until V1.0.5."""
        self.process_list = False
        """True: the status call answers with a list, which its plural path suggests."""
        self.status_paths = frozenset({"statuses", "status"})
        self.numbers = False
        """True: read-back values are JSON numbers instead of the samples' quoted strings."""
        self.declined: set[str] = set()
        """Inverters of a second group, which operations declined: nothing is taken for them."""
        self.lists = True
        """False: there are no lists of applications."""
        self.next_outcome: Outcome = "Success"
        """How the next accepted request will end; back to Success after it."""
        self.per_ip = Window(3000, 300)
        self.per_account = Window(60, 60)
        self.series: dict[str, Series] = {}
        self.processes: dict[int, Process] = {}
        self._pending: list[Process] = []
        self._access: dict[str, datetime] = {}
        self._refresh: dict[str, datetime] = {}
        self._issued = 0
        self._application, self._declined = _uuid(seed, "application"), _uuid(seed, "declined")
        self._device = _uuid(seed, "device")
        self._opened = now()

    # -- time passes ---------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Ends every process whose time has come; called before anything is looked at."""
        now = self._now()
        waiting = []
        for process in self._pending:
            if process.ready > now:
                waiting.append(process)
                continue
            process.settled = True
            kept = {"Success": len(process.records), "half": len(process.records) // 2, "Failed": 0}[process.outcome]
            for remote_id, day, entry in process.records[:kept]:
                self.series[remote_id].stored[day] = entry
            for remote_id, day, _ in process.records[kept:]:
                self.series[remote_id].forget(day)
        self._pending = waiting

    def revoke(self) -> None:
        """Every access token given out so far stops working; the fixed token and refresh tokens stay."""
        self._access.clear()

    def restore(self, event: Mapping[str, Any]) -> None:
        """One line of the journal."""
        records: list[Record] = [
            (remote_id, date.fromisoformat(day), Entry(period, total))
            for remote_id, day, period, total in event["records"]
        ]
        created, ready = (datetime.fromisoformat(event[key]) for key in ("created", "ready"))
        self._accept(Process(event["id"], created, ready, event["outcome"], records))

    # -- requests ------------------------------------------------------------------------------------------------

    @staticmethod
    def kind(method: str, path: str) -> str:
        """The name under which a request is counted and disturbed."""
        return "redex." + _ROUTES.get((method, path), _parameter_route(method, path))

    def handle(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes, *, client: str = "127.0.0.1"
    ) -> Answer:
        self.settle()
        request = Request(method, path, query, headers, body, self._now())
        if wait := self.per_ip.take(client, request.now):
            return self._limited("rate-ip", "more than 3,000 requests from one address in 300 s", wait, request)
        kind = self.kind(method, path)[len("redex.") :]
        token = kind in ("token", "refresh")
        if kind == "other":
            known = any(path == known for _, known in _ROUTES)
            return envelope(405, None, "Method Not Allowed") if known else envelope(404, None, "Not Found")
        if not token:
            given = bearer(headers)
            if not given:
                self._violations.add(self.name, "no-bearer", "a call without Authorization: Bearer", f"{method} {path}")
                return unauthorized()
            if given != self.token and self._access.get(given, request.now) <= request.now:
                return unauthorized()
        if wait := self.per_account.take("account", request.now):
            return self._limited("rate-account", "more than 60 requests of the account in 60 s", wait, request)
        answer: Answer = getattr(self, f"_do_{kind}")(request)
        return answer

    def _limited(self, rule: str, text: str, wait: int, request: Request) -> Answer:
        self._violations.add(self.name, rule, text, f"{request.method} {request.path}")
        return too_many(wait)

    def _refuse(self, request: Request, problems: list[Problem], status: int = 422) -> Answer:
        """One violation for each rule, with the first record that broke it; errors by field, at most MAX_ERRORS."""
        rules: dict[str, list[Problem]] = {}
        keys: dict[str, list[str]] = {}
        for problem in problems:
            rules.setdefault(problem.rule, []).append(problem)
            if problem.key in keys or len(keys) < MAX_ERRORS:
                messages = keys.setdefault(problem.key, [])
                if len(messages) < MAX_ERRORS:
                    messages.append(problem.text)
        for rule, of_rule in rules.items():
            more = f" (and {len(of_rule) - 1} more)" if len(of_rule) > 1 else ""
            about = f"{request.method} {request.path} {of_rule[0].about}"
            self._violations.add(self.name, rule, of_rule[0].text + more, about)
        if status == 400:
            return envelope(400, None, "Bad Request")
        errors = [{"Key": key, "Message": texts[0], "Messages": texts} for key, texts in keys.items()]
        return envelope(422, None, "Unprocessable Entity", errors=errors)

    def _document(self, request: Request) -> Any:
        """The body as JSON; raises BadJson where it is none."""
        if header(request.headers, "Content-Type").partition(";")[0].strip().lower() != "application/json":
            raise BadJson("Content-Type is not application/json")
        return read_json(request.body)

    # -- tokens --------------------------------------------------------------------------------------------------

    def _do_token(self, request: Request) -> Answer:
        return self._grant(request, {"ApiKey": 36, "ClientId": 36, "ClientSecret": 36}, "api_key")

    def _do_refresh(self, request: Request) -> Answer:
        return self._grant(request, {"RefreshToken": 0, "ClientId": 36, "ClientSecret": 36}, "refresh_token")

    def _grant(self, request: Request, fields: dict[str, int], grant: str) -> Answer:
        try:
            body = self._document(request)
        except BadJson as exc:
            return self._refuse(request, [Problem("json", "", str(exc), "")], 400)
        if not isinstance(body, dict):
            return self._refuse(request, [Problem("shape", "", "the body is no object", "")], 400)
        problems = member_problems(body, {*fields, "GrantType"}, "", "")
        for name, longest in fields.items():
            if name in body and not is_text(body[name]):
                problems.append(Problem("shape", name, f"{name} is no text", ""))
            elif longest and len(body.get(name, "")) > longest:
                problems.append(Problem("shape", name, f"{name} is longer than {longest} characters", ""))
        if body.get("GrantType", grant) != grant:
            problems.append(Problem("shape", "GrantType", f"GrantType is not {grant}", ""))
        if problems:
            return self._refuse(request, problems)
        if any(body[name] != self.credentials[name] for name in fields if name in self.credentials):
            return unauthorized()
        # A refresh token works once: the documents do not say whether they rotate, so a client keeps the newest.
        if grant == "refresh_token" and self._refresh.pop(body["RefreshToken"], request.now) <= request.now:
            return unauthorized()
        self._issued += 1
        access, refresh = (f"{word}-{_hex(self._seed, word, self._issued)}" for word in ("access", "refresh"))
        self._access[access] = request.now + TOKEN_LIFE
        self._refresh[refresh] = request.now + REFRESH_LIFE
        seconds = int(TOKEN_LIFE.total_seconds())
        data = {
            "AccessToken": access,
            "RefreshToken": refresh,
            # Documented as an integer, sampled as text: a client must take both.
            "ExpiresIn": str(seconds) if grant == "api_key" else seconds,
            "TokenType": "Bearer",
            "Scope": "REConnect_api REDEX_api REHash_api",
        }
        return envelope(200, data, "Success")

    # -- sending -------------------------------------------------------------------------------------------------

    def _do_send(self, request: Request) -> Answer:
        return self._send(request, GROUPED, batch=False)

    def _do_batch(self, request: Request) -> Answer:
        return self._send(request, GROUPED, batch=True)

    def _do_legacy(self, request: Request) -> Answer:
        return self._send(request, LEGACY, batch=False)

    def _send(self, request: Request, dialect: Dialect, *, batch: bool) -> Answer:
        try:
            body = self._document(request)
        except BadJson as exc:
            return self._refuse(request, [Problem("json", "", str(exc), f"{len(request.body)} bytes")], 400)
        if not isinstance(body, dict):
            return self._refuse(request, [Problem("shape", "", "the body is no object", shorten(body))], 400)
        records, problems = read_batch(body) if batch else read_single(body, dialect, "")
        if not problems and len(records) > MAX_RECORDS:
            text = f"{len(records)} records, {MAX_RECORDS} are the limit"
            problems = [Problem("too-many-records", "Devices" if batch else "Data", text, "")]
        problems = problems or self._judge(records, request.now)
        if problems:
            return self._refuse(request, problems)
        ready = request.now + self.processing_delay
        process = Process(20_745 + len(self.processes), request.now, ready, self.next_outcome, records)
        self.next_outcome = "Success"
        self._accept(process)
        self._journal(
            {
                "redex": {
                    "id": process.id,
                    "created": request.now.isoformat(),
                    "ready": ready.isoformat(),
                    "outcome": process.outcome,
                    "records": [[who, day.isoformat(), entry.period, entry.total] for who, day, entry in records],
                }
            }
        )
        self.settle()
        if dialect is LEGACY:
            return json_answer(200, {"Data": {}, "StatusCode": 200, "Message": "Success"})
        data = {"ProcessId": process.id} if self.process_ids else {}
        return envelope(201, data, "Success", errors=None)

    def _accept(self, process: Process) -> None:
        for remote_id, day, entry in process.records:
            self.series.setdefault(remote_id, Series()).learn(day, entry)
        self.processes[process.id] = process
        self._pending.append(process)

    def _judge(self, records: list[Record], now: datetime) -> list[Problem]:
        """The rules about pairs, days and running totals, for records of right shape."""
        today = now.astimezone(self.zone).date()
        problems: list[Problem] = []
        of_inverter: dict[str, list[tuple[date, Entry]]] = {}
        for remote_id, day, entry in records:
            of_inverter.setdefault(remote_id, []).append((day, entry))
        for remote_id, days in of_inverter.items():
            inverter = self.inverters.get(remote_id)
            if inverter is None and not self.open_registration:
                problems.append(Problem("unknown-inverter", "RemoteInvId", f"{remote_id} is not registered", remote_id))
                continue
            if remote_id in self.declined:
                problems.append(Problem("declined", "RemoteInvId", f"the group of {remote_id} is declined", remote_id))
                continue
            days.sort(key=lambda item: item[0])
            problems += day_problems(remote_id, days, today, inverter)
            problems += sum_problems(remote_id, days, self.series.get(remote_id))
        return problems

    # -- following up and reading back ---------------------------------------------------------------------------

    def _do_status(self, request: Request) -> Answer:
        if request.path.rpartition("/")[2] not in self.status_paths:
            return envelope(404, None, "Not Found")
        query, problems = self._query(request, {"ProcessId"}, {"ProcessId"})
        if problems:
            return self._refuse(request, problems, 400)
        if not re.fullmatch(r"\d{1,19}", query["ProcessId"], re.ASCII):
            return self._refuse(request, [Problem("query", "ProcessId", "ProcessId is no number", "")], 400)
        process = self.processes.get(int(query["ProcessId"]))
        if process is None:
            return envelope(404, None, "Not Found")
        half = process.created + (process.ready - process.created) / 2
        updated = process.ready if process.settled else half if request.now >= half else process.created
        data = {
            "ProcessId": process.id,
            "Status": process.status(request.now),
            "ProcessingType": "CreateNewGenerationData",
            "CreatedTime": _zoneless(process.created),
            "UpdatedTime": _zoneless(updated),
        }
        return envelope(200, [data] if self.process_list else data, "Success")

    def _do_read(self, request: Request) -> Answer:
        required = {"FrequencyType", "RemoteInvId", "FromDate", "ToDate"}
        query, problems = self._query(request, required, required | {"CurrentPage", "ItemsPerPage"})
        if problems:
            return self._refuse(request, problems, 400)
        about = shorten(query)
        if query["FrequencyType"] not in ("Daily", "Weekly", "Monthly"):
            problems.append(Problem("query", "FrequencyType", "FrequencyType is Daily, Weekly or Monthly", about))
        elif query["FrequencyType"] != "Daily":
            problems.append(Problem("query", "FrequencyType", "inverters have Daily values only", about))
        first, last = read_day(query["FromDate"]), read_day(query["ToDate"])
        for name, day in (("FromDate", first), ("ToDate", last)):
            if day is None:
                problems.append(Problem("query", name, f"{name} is no date YYYY-MM-DD", about))
        if first is not None and last is not None:
            if last < first:
                problems.append(Problem("query", "ToDate", "ToDate lies before FromDate", about))
            elif last > _months_later(first, 3):
                problems.append(Problem("query", "ToDate", "more than three months between FromDate and ToDate", about))
        remote_id = query["RemoteInvId"]
        series = self.series.get(remote_id)
        if not remote_id or (series is None and remote_id not in self.inverters and not self.open_registration):
            problems.append(Problem("unknown-inverter", "RemoteInvId", f"{remote_id} is not registered", about))
        if problems or first is None or last is None:
            return self._refuse(request, problems)
        stored = series.stored if series else {}
        days = sorted(day for day in stored if first <= day <= last)
        shown, meta = _page(days, query)
        rows = [
            {
                "RemoteInvId": remote_id,
                "Timestamp": day.isoformat(),
                "PeriodProductionInKWh": self._kwh(stored[day].period),
                GROUPED.accumulated: self._kwh(stored[day].total),
            }
            for day in shown
        ]
        return envelope(200, rows, "Success", meta=meta)

    def _kwh(self, tenths: int) -> str | float:
        if self.numbers:
            return tenths / 10_000
        whole, rest = divmod(tenths, 10_000)
        return f"{whole}.{rest:04d}" if rest % 10 else f"{whole}.{rest // 10:03d}"

    def _do_applications(self, request: Request) -> Answer:
        allowed = {"Registries", "Status", "CountryCodes", "Energies", "DeviceTypes", "Search", "CurrentPage"}
        allowed |= {"ItemsPerPage", "OrderBy", "IsDescending"}
        query, problems = self._query(request, set(), allowed)
        if problems:
            return self._refuse(request, problems, 400)
        if not self.lists:
            return envelope(404, None, "Not Found")
        applications = [self._application_data(id) for id in self._applications()]
        wanted = [
            application
            for application in applications
            if query.get("Status", application["Status"]["Value"]) == application["Status"]["Value"]
            and query.get("DeviceTypes", "Grouped") == "Grouped"
            and query.get("Energies", "Solar") == "Solar"
            and query.get("Registries", "IREC") == "IREC"
            and query.get("Search", "").lower() in application["DeviceName"].lower()
        ]
        shown, meta = _page(wanted, query)
        return envelope(200, shown, "Success", meta=meta)

    def _do_application(self, request: Request) -> Answer:
        id = request.path.rpartition("/")[2]
        if id not in self._applications():
            return envelope(404, None, "Not Found")
        return envelope(200, self._application_data(id), "Success")

    def _applications(self) -> list[str]:
        return [self._application, *([self._declined] if self.declined else [])]

    def _application_data(self, id: str) -> dict[str, Any]:
        status = "Declined" if id == self._declined else "Unverified"
        megawatts = sum(inverter.capacity_kw or 0.0 for inverter in self.inverters.values()) / 1000
        return {
            "Id": id,
            "ApplicationNumber": "1000000000000002" if id == self._declined else "1000000000000001",
            "DeviceName": "Sandbox group, declined" if id == self._declined else "Sandbox group",
            "Status": {"Value": status, "Description": status},
            "Registry": {"Value": "IREC", "Description": "I-REC"},
            "EnergyValue": "Solar",
            "FuelType": "ES110",
            "CountryCode": "SG",
            "CreatedTime": iso(self._opened),
            "UpdatedTime": iso(self._opened),
            "AnnualGeneration": round(megawatts * 1200, 6),
            "Capacity": round(megawatts, 6),
            "OriginalCapacity": round(megawatts, 6),
            "DeviceType": {"Value": "Grouped", "Description": "Grouped"},
        }

    def _do_devices(self, request: Request) -> Answer:
        id = request.path.rpartition("/")[0].rpartition("/")[2]
        if id not in self._applications():
            return envelope(404, None, "Not Found")
        query, problems = self._query(request, set(), {"CurrentPage", "ItemsPerPage"})
        if problems:
            return self._refuse(request, problems, 400)
        inverters = [
            {
                "Id": 1_234_567 + index,
                "RemoteInvId": remote_id,
                "BrandCode": "HW21",
                "OtherBrandName": "",
                "ElectronicSerialNumber": f"SANDBOX{index:06d}",
                "InstalledCapacity": known.capacity_kw or 0.0 if (known := self.inverters.get(remote_id)) else 0.0,
                "CreatedTime": iso(self._opened),
            }
            for index, remote_id in enumerate(dict.fromkeys((*self.inverters, *self.series, *sorted(self.declined))))
            if (remote_id in self.declined) == (id == self._declined)
        ]
        device = {
            "Id": self._device,
            "InstallationName": "Sandbox-000001",
            "Address": "1 Example Road",
            "PostalCode": "000001",
            "Longitude": 103.90861,
            "Latitude": 1.305278,
            "GridConnectionDate": "2022-05-13",
            "OwnersDeclarationStartDate": "2022-05-13",
            "OwnersDeclarationEndDate": None,
            "Domestic": False,
            "FeedInTariff": False,
            "DeclarationForm": _uuid(self._seed, "declaration"),
            "PercentageRenewable": 100,
            "Timezone": self._offset(),
            "CreatedTime": iso(self._opened),
            "Inverters": inverters,
        }
        shown, meta = _page([device], query)
        return envelope(200, shown, "Success", meta=meta)

    def _offset(self) -> str | None:
        """`UTC+08:00` as registered; None where no zone was set."""
        if self.zone is EARLIEST_ZONE:
            return None
        minutes = int((self._now().astimezone(self.zone).utcoffset() or timedelta(0)).total_seconds() // 60)
        hours, rest = divmod(abs(minutes), 60)
        return f"UTC{'-' if minutes < 0 else '+'}{hours:02d}:{rest:02d}"

    def _query(self, request: Request, required: set[str], allowed: set[str]) -> tuple[Query, list[Problem]]:
        members = query_members(request.query)
        query = dict(members)
        about = shorten(query)
        problems = []
        if len(query) != len(members):
            problems.append(Problem("query", "", "a query parameter stands twice", about))
        for name in query.keys() - allowed:
            problems.append(Problem("query", name, f"unknown query parameter {name}", about))
        for name in sorted(required - query.keys()):
            problems.append(Problem("query", name, f"{name} is missing", about))
        for name in ("CurrentPage", "ItemsPerPage"):
            if name in query and name in allowed and not re.fullmatch(r"[1-9]\d{0,8}", query[name], re.ASCII):
                problems.append(Problem("query", name, f"{name} is no number above 0", about))
        return query, problems


# -- answers -------------------------------------------------------------------------------------------------------


def envelope(
    status: int,
    data: object,
    message: str,
    *,
    errors: Sequence[Mapping[str, Any]] | None = (),
    meta: Mapping[str, int] | None = None,
) -> Answer:
    """The usual answer object; `errors` None or [] both occur in the samples."""
    document = {
        "Data": data,
        "Errors": list(errors) if errors is not None else None,
        "Meta": meta,
        "StatusCode": status,
        "Message": message,
    }
    return json_answer(status, document)


def unauthorized() -> Answer:
    """As sampled: without Errors and Meta."""
    return json_answer(401, {"Data": None, "StatusCode": 401, "Message": "Unauthorized"})


def forbidden() -> Answer:
    return json_answer(403, {"Data": None, "StatusCode": 403, "Message": "Forbidden"})


def too_many(wait: int) -> Answer:
    """Not the envelope: the wording of the policies is that of a gateway product which answers by itself."""
    text = f"Rate limit is exceeded. Try again in {wait} seconds."
    return json_answer(429, {"statusCode": 429, "message": text}, ("Retry-After", str(wait)))


# -- small things --------------------------------------------------------------------------------------------------

_ROUTES: dict[tuple[str, str], str] = {
    ("POST", "/public/v2/connect/token"): "token",
    ("POST", "/public/v2/connect/token/refresh"): "refresh",
    ("POST", "/public/v2/generation-datas"): "send",
    ("POST", "/public/v2/generation-datas/batches"): "batch",
    ("POST", "/public/v2/generation-data"): "legacy",
    ("GET", "/public/v2/generation-datas"): "read",
    ("GET", "/public/v2/generation-datas/statuses"): "status",
    ("GET", "/public/v2/generation-datas/status"): "status",
    ("GET", "/public/v2/device-applications"): "applications",
}


def _parameter_route(method: str, path: str) -> str:
    if method == "GET" and re.fullmatch(r"/public/v2/device-applications/[^/]+", path):
        return "application"
    if method == "GET" and re.fullmatch(r"/public/v2/device-applications/[^/]+/devices", path):
        return "devices"
    return "other"


def _page(items: list[_T], query: Query) -> tuple[list[_T], dict[str, int]]:
    """A page of at most PAGE_MAX items whatever was asked for: a client must go by the returned Meta."""
    size = min(int(query.get("ItemsPerPage", PAGE_DEFAULT)), PAGE_MAX)
    number = int(query.get("CurrentPage", 1))
    meta = {
        "CurrentPage": number,
        "TotalPage": math.ceil(len(items) / size),
        "TotalItems": len(items),
        "ItemsPerPage": size,
    }
    return items[(number - 1) * size : number * size], meta


def _months_later(day: date, months: int) -> date:
    """The same day of a later month, or its last one."""
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    for number in (day.day, 30, 29, 28):
        with suppress(ValueError):
            return date(year, month + 1, number)
    raise AssertionError("every month has 28 days")


def _zoneless(at: datetime) -> str:
    """As sampled: no zone, seven fraction digits, trailing zeros gone."""
    at = at.astimezone(UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond * 10:07d}".rstrip("0").rstrip(".")


def _hex(*parts: object) -> str:
    return hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()[:32]


def _uuid(*parts: object) -> str:
    return str(UUID(_hex(*parts), version=4))
