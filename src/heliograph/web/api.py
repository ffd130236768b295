"""The read-only REST, without a framework: from a method and a target to an answer. What is asked for stands in ROUTES.

Every list is bounded: so many rows and so many bytes, then a link to go on. Each request has a read-only connection of
its own, so that it holds up nobody who writes; only /status and /meters ask the running gateway for the health of the
site, and /healthz and /readyz, which anybody may ask, are answered from memory.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, unquote
from zoneinfo import ZoneInfo

import structlog

from heliograph import library
from heliograph.core.answer import Answer, encoded, found, problem
from heliograph.core.daily import day_of, start_of
from heliograph.core.errors import StoreError
from heliograph.core.health import as_json
from heliograph.core.readings import Reading
from heliograph.core.site import Meter
from heliograph.store import Store
from heliograph.web.route import NAME, Parameter, Question, Route, Site, Wrong
from heliograph.work.decide import waiting_page
from heliograph.work.health import Live
from heliograph.work.list_days import list_days

log = structlog.get_logger()

# A list ends before it is longer than this, whatever its limit; one row more may be on top.
MOST_BYTES = 250_000
# Most parameters of a request, and most characters of its target.
MOST_FIELDS = 16
MOST_CHARACTERS = 4_000
EARLIEST, LATEST = date(1970, 1, 2), date(9998, 12, 31)
"""Days whose borders can be reckoned, whatever the zone."""

# RFC 3339, section 5.6.
_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:([Zz])|([+\- ])(\d\d):(\d\d))", re.ASCII
)
# A day of a meter, as the `next` links write it.
_PLACE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,63})/(\d{4}-\d\d-\d\d)", re.ASCII)


# -- answers ----------------------------------------------------------------------------------------------------------


def healthz(site: Site, _: Question) -> Any:
    if not site.alive():
        why = "a bus job has not come round for minutes"
        raise Wrong(503, f"The gateway hangs: {why}.", "systemd restarts it; else: systemctl restart heliograph")
    return {"alive": True}


def readyz(site: Site, asked: Question) -> Any:
    """Tells how many, never which: it is answered without a token, and from memory."""
    meters = site.app.meters
    silent = sum(_silent(meter, site.live, asked.now) for meter in meters)
    settings = site.app.config.settings
    reasons = [
        *([] if site.stores() else ["nothing can be stored"]),
        *([] if site.app.clock.trusted() else ["the clock is not synchronised"]),
        *([f"{silent} of {len(meters)} meters not read lately"] if silent else []),
        *([] if settings.uplink.redex or settings.uplink.drec else ["no uplink is configured"]),
    ]
    if reasons:
        raise Wrong(503, "; ".join(reasons), "heliograph status says more, and what to do.", {"reasons": reasons})
    return {"ready": True}


def _silent(meter: Meter, live: Live, now: datetime) -> bool:
    at = live.at.get(meter.id)
    return at is None or now - at > meter.cadence


def status(site: Site, _: Question) -> Any:
    return as_json(site.health())


def meters(site: Site, asked: Question) -> Any:
    seen = {one.id: one for one in site.health().meters}
    after = asked.values.get("after", "")
    rows = ({**asdict(seen[one.id]), **_facts(one)} for one in _by_name(site.app.meters) if one.id > after)
    return _page("meters", rows, asked, lambda row: ("after", row["id"]))


def meter(site: Site, asked: Question) -> Any:
    """What it showed last, from the running gateway's memory."""
    one = next((one for one in site.app.meters if one.id == asked.values["id"]), None)
    if one is None:
        raise _no("meter", asked.values["id"], [one.id for one in site.app.meters])
    at, error = site.live.at.get(one.id), site.live.errors.get(one.id)
    return {
        "meter": one.id,
        "at": at or "never",
        "serial": _serial(site, one.id),
        "values": dict(site.live.values.get(one.id, {})),
        "absent": {},
        "doubts": [error] if error else [],
        "bus": one.bus,
        "unit": one.unit,
        "map": one.map.name,
        **_facts(one),
    }


def readings(site: Site, asked: Question) -> Any:
    given = asked.values
    with _store(site) as store:
        id = _known(site, store, given["id"])
        limit = given["limit"]
        try:
            rows, go_on = store.readings.page(id, given.get("from"), given.get("to"), given.get("before"), limit)
        except KeyError:
            hint = f"Begin anew with to=, for old samples are thinned: {asked.path}"
            raise Wrong(404, f"{id} has no reading {given['before']} (any more)", hint) from None
    answer = _page("readings", map(_sample, rows), asked, lambda row: ("before", row["id"]))
    if answer["next"] is None and go_on is not None:
        answer["next"] = asked.next("before", go_on)
    return answer


def days(site: Site, asked: Question) -> Any:
    given = asked.values
    last = given.get("to", asked.today)
    first = given["from"] if "from" in given else last - min(timedelta(days=14), last - date.min)
    after: tuple[str, str] = given.get("after", ("", ""))
    if first > last:
        raise Wrong(404, f"there is no day from {first} to {last}, for the first is later", "Turn them round.")
    with _store(site) as store:
        names = [_known(site, store, given["meter"])] if "meter" in given else store.readings.meters()
        rows = list_days(names, store, site.app.rules.zone, asked.now, first, last, after=after)
        return _page("days", rows, asked, lambda row: ("after", f"{row['meter']}/{row['day']}"))


def explained(site: Site, asked: Question) -> Any:
    from heliograph.work.explain import Setting, explain  # only for whoever asks: it takes memory

    day: date = asked.values["date"]
    if not EARLIEST <= day <= LATEST:
        raise Wrong(404, f"no meter was read on {day}", f"A day from {EARLIEST} to {LATEST} can be explained.")
    with _store(site) as store:
        id = _known(site, store, asked.values["meter"])
        one = next((one for one in site.app.meters if one.id == id), None)
        order, factors = site.app.adjusted(id) if one is not None else (None, {})
        setting = Setting(order, factors) if one is not None else None
        return explain(id, day, store, asked.now, library.from_texts, setting)


def outbox(site: Site, asked: Question) -> Any:
    given = asked.values
    with _store(site) as store:
        id = _known(site, store, given["meter"]) if "meter" in given else None
        uplink = given.get("uplink")
        known = {report.uplink for one in site.app.meters for report in one.reports} | set(store.outbox.counts())
        if uplink is not None and uplink not in known:
            raise _no("uplink", uplink, sorted(known))
        rows = waiting_page(
            site.app.meters,
            store,
            uplink,
            id,
            given.get("day"),
            asked.now,
            after=given.get("after", 0),
            most=given["limit"] + 1,
        )
    return _page("rows", rows, asked, lambda row: ("after", row["row"]))


def events(site: Site, asked: Question) -> Any:
    with _store(site) as store:
        rows = store.journal.page(asked.values.get("before"), asked.values["limit"] + 1)
    return _page("events", rows, asked, lambda row: ("before", row["id"]))


def openapi(_: Site, __: Question) -> Any:
    from heliograph.web.openapi import document  # only for whoever asks: it takes memory

    return document(ROUTES)


def _page(
    key: str,
    rows: Iterable[Mapping[str, Any]],
    asked: Question,
    place: Callable[[Mapping[str, Any]], tuple[str, object]],
) -> dict[str, Any]:
    """As many rows as may be, and from where to go on (`place`: of a row, the parameter that leads behind it)."""
    shown: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        if len(shown) == asked.values["limit"] or size > MOST_BYTES:
            return {key: shown, "next": asked.next(*place(shown[-1]))}
        shown.append(row)
        size += len(encoded(row))
    return {key: shown, "next": None}


def _by_name(meters: Sequence[Meter]) -> list[Meter]:
    return sorted(meters, key=lambda one: one.id)


def _facts(meter: Meter) -> dict[str, Any]:
    """What the configuration says of a meter."""
    return {
        "production": meter.production,
        "rated_kw": meter.rated_kw,
        "baseline_wh": meter.baseline_wh,
        "every_s": meter.every.total_seconds(),
        "reports": {report.uplink: report.remote_id for report in meter.reports},
    }


def _sample(reading: Reading) -> dict[str, Any]:
    return {
        "id": reading.id,
        "at": reading.moment.at,
        "clock_trusted": reading.moment.trusted,
        "index_wh": reading.index_wh,
        "good": reading.good,
        "doubt": reading.doubt,
        "settled": reading.settled,
        "values": dict(reading.values),
    }


def _serial(site: Site, id: str) -> str | None:
    try:
        with _store(site) as store:
            return store.readings.serial(id)
    except StoreError:
        return None  # what is shown comes from memory, and is shown all the same


@contextmanager
def _store(site: Site) -> Iterator[Store]:
    store = site.app.reader()
    try:
        yield store
    finally:
        store.close()


def _known(site: Site, store: Store, id: str) -> str:
    """A meter that is configured, or was once: its days stay."""
    stored = store.readings.meters()
    if id not in stored:
        raise _no("meter", id, sorted({*stored, *(one.id for one in site.app.meters)}))
    return id


def _no(what: str, name: str, known: Sequence[str]) -> Wrong:
    if name in known:
        return Wrong(404, f"{what} {name} has nothing stored yet", "It is there after its first reading.")
    near = difflib.get_close_matches(name, known, 1)
    hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known[:20]) or 'none yet'}"
    return Wrong(404, f"there is no {what} {name}", hint)


# -- what may be asked ------------------------------------------------------------------------------------------------


def _limit(default: int, most: int) -> Parameter:
    return Parameter("limit", "count", "Most rows of the answer.", default, most)


_METER = Parameter("meter", "name", "Only this meter.")
_ID = Parameter("id", "name", "The meter.", required=True)

ROUTES: tuple[Route, ...] = (
    Route("/healthz", "Does the gateway run? 503 when a bus job has not come round.", "Alive", healthz),
    Route(
        "/readyz",
        "Does it do its work? 503 with the reasons: store, clock, meters, uplinks.",
        "Ready",
        readyz,
    ),
    Route("/api/v1/status", "The site at a glance, as `heliograph status --json`.", "Status", status),
    Route(
        "/api/v1/meters",
        "The configured meters, by name.",
        "Meters",
        meters,
        (_limit(100, 200), Parameter("after", "name", "Only meters whose name comes later.")),
    ),
    Route(
        "/api/v1/meters/{id}",
        "What a meter showed last, as `heliograph read --json`.",
        "Meter",
        meter,
        (_ID,),
        may_miss=True,
    ),
    Route(
        "/api/v1/meters/{id}/readings",
        "Stored samples of a meter, newest first.",
        "Readings",
        readings,
        (
            _ID,
            Parameter("from", "moment", "Read at this moment or later; a day is its midnight."),
            Parameter("to", "moment", "Read before this moment; a day is its midnight."),
            Parameter("before", "number", "Only samples behind this one: it stands in `next`."),
            _limit(100, 500),
        ),
        may_miss=True,
    ),
    Route(
        "/api/v1/days",
        "What each local day came to, by meter and day, as `heliograph days --json`.",
        "Days",
        days,
        (
            _METER,
            Parameter("from", "day", "First day; without it, 14 days before the last one."),
            Parameter("to", "day", "Last day; without it, today."),
            Parameter("after", "place", "Only days behind this one, METER/DAY: it stands in `next`."),
            _limit(100, 400),
        ),
        may_miss=True,
    ),
    Route(
        "/api/v1/days/{date}/explain",
        "Where a day's figure comes from, as `heliograph explain --json`.",
        "Explained",
        explained,
        (
            Parameter("date", "day", "The local day.", required=True),
            Parameter("meter", "name", "The meter.", required=True),
        ),
        may_miss=True,
    ),
    Route(
        "/api/v1/outbox",
        "What no platform has confirmed yet, the longest queued first, as `heliograph backlog --json`.",
        "Outbox",
        outbox,
        (
            _METER,
            Parameter("uplink", "name", "Only this platform."),
            Parameter("day", "day", "All rows of one day, confirmed ones included."),
            Parameter("after", "number", "Only rows behind this one: it stands in `next`."),
            _limit(50, 200),
        ),
        may_miss=True,
    ),
    Route(
        "/api/v1/events",
        "What happened, newest first.",
        "Events",
        events,
        (Parameter("before", "number", "Only events before this one: it stands in `next`."), _limit(100, 500)),
    ),
    Route("/openapi.json", "This document.", "Document", openapi),
)


def answer(site: Site, method: str, target: str) -> Answer:
    """Never raises: what goes wrong is an answer too."""
    path = target.partition("?")[0]
    try:
        return _answer(site, method, target)
    except Wrong as wrong:
        return problem(wrong.status, wrong.detail, wrong.hint, instance=path, more=wrong.more)
    except StoreError as error:
        return problem(503, error.message, error.hint or "heliograph status", instance=path)
    except Exception:  # a fault of ours in one answer must not end the metering; its traceback is kept
        log.exception("answer_crashed", path=path[:200])
        return problem(500, "This is a fault in the gateway; its log has more.", "heliograph support", instance=path)


def _answer(site: Site, method: str, target: str) -> Answer:
    path, _, query = target.partition("?")
    if len(target) > MOST_CHARACTERS:
        raise Wrong(400, f"the target has {len(target)} characters", f"At most {MOST_CHARACTERS} are read.")
    match = matched(path)
    if match is None:
        raise Wrong(404, f"there is no {path}", "What there is: /openapi.json, and to begin with /api/v1/status")
    route, named = match
    if method not in ("GET", "HEAD"):
        return problem(
            405, f"{method} is not done here: what is answered is read-only", "GET it.", instance=path,
            headers={"Allow": "GET, HEAD"},
        )  # fmt: skip
    now = site.app.clock.now()
    today = day_of(now, site.app.rules.zone)
    given = _query(query, route)
    values = {
        one.name: _value(one, text, today, site.app.rules.zone)
        for one in route.parameters
        if (text := named.get(one.name, given.get(one.name, None if one.default is None else str(one.default))))
        is not None
    }
    for one in route.parameters:
        if one.name not in values and one.required:
            raise Wrong(400, f"{one.name} is missing: {one.text[0].lower()}{one.text[1:]}", f"Add {one.name}=...")
    return found(route.answer(site, Question(path, given, values, now, today)))


def matched(path: str) -> tuple[Route, dict[str, str]] | None:
    """The route of a path, and what stands in the places of its braces."""
    parts = path.split("/")
    for route in ROUTES:
        wanted = route.path.split("/")
        if len(wanted) == len(parts) and all(
            want == part or (want.startswith("{") and part) for want, part in zip(wanted, parts, strict=True)
        ):
            named = {
                want[1:-1]: unquote(part) for want, part in zip(wanted, parts, strict=True) if want.startswith("{")
            }
            return route, named
    return None


def _query(query: str, route: Route) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError as error:
        raise Wrong(400, f"the query has more than {MOST_FIELDS} fields", "Leave some out.") from error
    known = [one.name for one in route.parameters if "{" + one.name + "}" not in route.path]
    given: dict[str, str] = {}
    for name, text in pairs:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {near[0]}?" if near else f"Parameters here: {', '.join(known) or 'none'}"
            raise Wrong(400, f"there is no parameter {name[:100]}", hint)
        if name in given:
            raise Wrong(400, f"{name} stands there twice", "Give it once.")
        given[name] = text
    return given


def _value(one: Parameter, text: str, today: date, zone: ZoneInfo) -> Any:
    def wrong(what: str, hint: str) -> Wrong:
        return Wrong(400, f"{one.name} is {text[:100]!r}, which is no {what}", hint)

    match one.kind:
        case "count" | "number":
            number = int(text) if re.fullmatch(r"[0-9]{1,19}", text) else 0
            if not 1 <= number <= one.most:
                top = f" to {one.most}" if one.kind == "count" else " on"
                raise wrong(f"whole number from 1{top}", f"Write {one.name}={one.default or 1}")
            return number
        case "name":
            if not re.fullmatch(NAME, text) or text.endswith("\n"):
                raise wrong("name", "Letters, digits, _ . and -, as in config.toml.")
            return text
        case "day":
            try:
                return _day(text, today)
            except ValueError:
                raise wrong("day", "Write 2026-03-14, today or yesterday.") from None
        case "moment":
            try:
                return start_of(_day(text, today), zone)
            except OverflowError:
                return datetime.min.replace(tzinfo=UTC)
            except ValueError:
                pass
            try:
                return _moment(text)
            except ValueError:
                hint = "Write 2026-03-14T12:00:00Z, or a day of the site; the + of another offset is %2B in a query."
                raise wrong("moment", hint) from None
        case "place":
            if (match := _PLACE.fullmatch(text)) is None:
                raise wrong("place in a list", "Take it from `next` of the answer before.")
            return match[1], match[2]


def _day(text: str, today: date) -> date:
    if text in ("today", "yesterday"):
        return today if text == "today" else today - timedelta(days=1)
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
        raise ValueError(text)
    return date.fromisoformat(text)


def _moment(text: str) -> datetime:
    """RFC 3339: a leap second is the one before it, what lies beyond the calendar its end. Raises ValueError.

    A + that was not written as %2B has become a blank on the way.
    """
    if (match := _MOMENT.fullmatch(text)) is None:
        raise ValueError(text)
    day, hour, minute, second, fraction, _, sign, hours, minutes = match.groups()
    at = datetime.fromisoformat(f"{day}T{hour}:{minute}:{'59' if second == '60' else second}+00:00")
    at = at.replace(microsecond=int(f"{fraction or ''}000000"[:6]))
    if sign is None:
        return at
    if int(hours) > 23 or int(minutes) > 59:
        raise ValueError(text)
    offset = timedelta(hours=int(hours), minutes=int(minutes)) * (-1 if sign == "-" else 1)
    try:
        return at - offset
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC) if offset < timedelta(0) else datetime.min.replace(tzinfo=UTC)
