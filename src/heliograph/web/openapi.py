"""The OpenAPI document, made from the table of routes, the dataclasses of `Health` and the shapes below.

Imported only when somebody asks for it. A field that stands here is a promise: it may get neighbours, never lost.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date, datetime
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from heliograph import __version__
from heliograph.core.answer import OPEN
from heliograph.core.daily import METHODS
from heliograph.core.health import Health, MeterHealth
from heliograph.web.route import LARGEST, NAME, Parameter, Route

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_INT: Schema = {"type": "integer"}
_NUMBER: Schema = {"type": "number"}
_BOOL: Schema = {"type": "boolean"}
_DAY: Schema = {"type": "string", "format": "date"}
_NAMED_DAY: Schema = {"type": "string", "enum": ["today", "yesterday"]}
_MOMENT: Schema = {"type": "string", "format": "date-time", "description": "UTC, with Z."}
_WH: Schema = {"type": "integer", "description": "Wh"}


def _or_null(schema: Schema) -> Schema:
    if isinstance(schema.get("type"), str):
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _map(of: Schema) -> Schema:
    return {"type": "object", "additionalProperties": of}


def _one_of(*texts: str) -> Schema:
    return {"type": "string", "enum": list(texts)}


def _of(**properties: Schema) -> Schema:
    """An object with all of these."""
    return {"type": "object", "required": sorted(properties), "properties": properties}


def _part(whole: Schema, **optional: Schema) -> Schema:
    """With more that may be there."""
    return {**whole, "properties": {**whole["properties"], **optional}}


def of_type(kind: Any) -> Schema:
    """The shape of a frozen value as `core.health.as_json` writes it."""
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        return _of(**{one.name: of_type(hints[one.name]) for one in fields(kind)})
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (what,) = (one for one in inner if one is not type(None))
        return _or_null(of_type(what))
    if origin is Literal:
        return _one_of(*inner)
    if origin is tuple:
        return _list(of_type(inner[0]))
    if origin is not None and issubclass(origin, Mapping):
        return _map(of_type(inner[1]))
    return dict({str: _TEXT, int: _INT, float: _NUMBER, bool: _BOOL, date: _DAY, datetime: _MOMENT}[kind])


_NEXT = _or_null({"type": "string", "format": "uri-reference", "description": "Where to go on; null at the end."})
_VALUES = {
    "type": "object",
    "description": "By quantity: energies in Wh, W, V, A, Hz and so on.",
    "additionalProperties": {"type": ["number", "string", "null"]},
}
_FACTS = {
    "production": _TEXT,
    "rated_kw": _NUMBER,
    "baseline_wh": _WH,
    "every_s": _NUMBER,
    "reports": {**_map(_TEXT), "description": "Its name at each uplink."},
}
_STATE = _one_of("due", "unclear", "accepted", "rejected", "held", "confirmed")
_METHOD = _one_of("", *METHODS)
_GAP = _of(**{"from": _MOMENT, "to": _MOMENT, "cause": _TEXT, "why": _TEXT})
_COVERAGE = _or_null(
    _of(
        expected=_INT,
        good=_INT,
        bad=_map(_INT),
        not_asked=_INT,
        unstored=_INT,
        first=_or_null(_MOMENT),
        last=_or_null(_MOMENT),
        longest_gap_s=_or_null(_INT),
        gaps=_list(_GAP),
    )
)
_ATTEMPT = _of(
    asked=_one_of("send", "follow", "read-back", "device", "person"),
    at=_MOMENT,
    last=_MOMENT,
    times=_INT,
    state=_STATE,
    rule=_TEXT,
    answer=_TEXT,
    remedy=_TEXT,
    claim=_or_null(_INT),
    claimed_at=_or_null(_MOMENT),
)
_DAY_ROW = _of(
    meter=_TEXT,
    day=_DAY,
    state=_one_of("closed", "held", "missing"),
    period_wh=_or_null(_WH),
    total_wh=_or_null(_WH),
    estimated_split=_BOOL,
    estimated_wh=_or_null(_WH),
    opening=_METHOD,
    closing=_METHOD,
    reason=_TEXT,
    seams=_list(_of(id=_or_null(_INT), kind=_TEXT, at=_MOMENT, corrects=_or_null(_INT), text=_TEXT)),
    coverage=_COVERAGE,
)
_OUTBOX_ROW = _of(
    row=_INT,
    uplink=_TEXT,
    meter=_TEXT,
    remote_id=_TEXT,
    day=_DAY,
    period_wh=_WH,
    total_wh=_WH,
    state=_STATE,
    attempt=_INT,
    rule=_TEXT,
    answer=_TEXT,
    remedy=_TEXT,
    due=_MOMENT,
    changed=_MOMENT,
    claimed_at=_or_null(_MOMENT),
    process_id=_or_null(_TEXT),
    claim=_or_null(_INT),
    aside=_BOOL,
    since=_MOMENT,
    blocks=_INT,
    behind=_or_null(_DAY),
    after=_or_null(_DAY),
    joins=_BOOL,
    attempts=_list(_ATTEMPT),
)
_STORED = _of(
    id=_INT,
    at=_MOMENT,
    boot=_TEXT,
    since_boot_s=_NUMBER,
    clock_trusted=_BOOL,
    clock=_TEXT,
    software=_TEXT,
    index_wh=_or_null(_WH),
    offset_wh=_WH,
    continuous_wh=_or_null(_WH),
    doubt=_TEXT,
    settled_by_seam=_BOOL,
    words=_list(_TEXT),
    unit=_or_null(_INT),
    function=_TEXT,
    function_code=_or_null(_INT),
    address=_or_null(_INT),
    count=_or_null(_INT),
    source=_TEXT,
    map_digest=_TEXT,
    map=_TEXT,
    decoding=_TEXT,
    decoded=_or_null({"type": "object"}),
    steps=_list(_of(step=_TEXT, value=_TEXT, how=_TEXT)),
)
_PLAIN = _of(at=_MOMENT, index_wh=_WH, total_wh=_WH, method=_METHOD, how=_TEXT)
_BORDER = _of(
    at=_MOMENT,
    index_wh=_WH,
    total_wh=_WH,
    method=_METHOD,
    how=_TEXT,
    estimated=_BOOL,
    before=_STORED,
    after=_or_null(_STORED),
    arithmetic=_TEXT,
)
_EXPLAINED = _part(
    _of(
        meter=_TEXT,
        day=_DAY,
        site=_TEXT,
        timezone=_TEXT,
        starts=_MOMENT,
        ends=_MOMENT,
        hours=_NUMBER,
        production=_TEXT,
        serial=_or_null(_TEXT),
        serial_at_start=_or_null(_TEXT),
        state=_one_of("closed", "held", "missing", "open", "none"),
        reason=_TEXT,
        period_wh=_or_null(_WH),
        total_wh=_or_null(_WH),
        formula=_TEXT,
        total_formula=_TEXT,
        since_formula=_TEXT,
        estimated_split=_BOOL,
        estimated_wh=_or_null(_WH),
        recovered=_list(_TEXT),
        held=_or_null(_of(kind=_TEXT, reason=_TEXT, since=_MOMENT, released=_or_null(_MOMENT))),
        submissions=_list(
            _of(
                uplink=_TEXT,
                remote_id=_TEXT,
                state=_STATE,
                attempt=_INT,
                claimed_at=_or_null(_MOMENT),
                changed=_MOMENT,
                process_id=_or_null(_TEXT),
                rule=_TEXT,
                answer=_TEXT,
                remedy=_TEXT,
                claim=_or_null(_INT),
                attempts=_list(_ATTEMPT),
                path=_TEXT,
                body_bytes=_or_null(_INT),
                body_sha256=_TEXT,
                excerpt=_TEXT,
                figures=_list(_of(**{"key": _TEXT, "sent": _TEXT, "wh": _or_null(_WH), "is": _TEXT})),
                together=_list(_DAY),
            )
        ),
        coverage=_COVERAGE,
        proof=_or_null(
            _of(
                entry=_INT,
                hash=_TEXT,
                carried=_BOOL,
                signed_at=_or_null(_MOMENT),
                checkpoint=_or_null(_INT),
                fingerprint=_TEXT,
            )
        ),
        samples=_of(
            stored=_INT,
            good=_INT,
            excluded=_list(
                _of(id=_INT, at=_MOMENT, index_wh=_or_null(_WH), words=_list(_TEXT), why=_TEXT, settled_by=_TEXT)
            ),
            first=_or_null(_MOMENT),
            last=_or_null(_MOMENT),
            longest_gap_s=_or_null(_NUMBER),
            thinned=_TEXT,
        ),
        seams=_list(
            _of(
                at=_MOMENT,
                kind=_TEXT,
                old_wh=_WH,
                new_wh=_WH,
                offset_wh=_WH,
                old_serial=_or_null(_TEXT),
                new_serial=_or_null(_TEXT),
                note=_TEXT,
                recorded=_or_null(_MOMENT),
                on_this_day=_BOOL,
                text=_TEXT,
                **{"was": _or_null({"type": "object"}), "is": _or_null({"type": "object"})},
            )
        ),
        events=_list(_of(at=_MOMENT, kind=_TEXT, text=_TEXT)),
        maps=_list(_of(digest=_TEXT, name=_TEXT, version=_TEXT, status=_TEXT, source=_TEXT)),
        checks=_list(_of(what=_TEXT, ok=_BOOL)),
    ),
    # Of a closed day.
    closed_at=_or_null(_MOMENT),
    software=_or_null(_TEXT),
    opening=_BORDER,
    closing=_BORDER,
    # Of one that is not.
    todo=_TEXT,
    bounds=_of(at_least_wh=_WH, at_most_wh=_or_null(_WH)),
    border_before=_or_null(_PLAIN),
    border_after=_or_null(_PLAIN),
    read_before=_or_null(_STORED),
    first_within=_or_null(_STORED),
    last_within=_or_null(_STORED),
    read_after=_or_null(_STORED),
)

SHAPES: Mapping[str, Schema] = {
    "Alive": _of(alive=_BOOL),
    "Ready": _of(ready=_BOOL),
    "Status": of_type(Health),
    "Meters": _of(meters=_list(_of(**of_type(MeterHealth)["properties"], **_FACTS)), next=_NEXT),
    "Meter": _of(
        meter=_TEXT,
        at={"anyOf": [_MOMENT, {"const": "never"}]},
        serial=_or_null(_TEXT),
        values=_VALUES,
        absent=_map(_TEXT),
        doubts=_list(_TEXT),
        bus=_TEXT,
        unit=_INT,
        map=_TEXT,
        **_FACTS,
    ),
    "Readings": _of(
        readings=_list(
            _of(
                id=_INT,
                at=_MOMENT,
                clock_trusted=_BOOL,
                index_wh=_or_null(_WH),
                good=_BOOL,
                doubt=_TEXT,
                settled=_BOOL,
                values=_VALUES,
            )
        ),
        next=_NEXT,
    ),
    "Days": _of(days=_list(_DAY_ROW), next=_NEXT),
    "Explained": _EXPLAINED,
    "Outbox": _of(rows=_list(_OUTBOX_ROW), next=_NEXT),
    "Events": _of(events=_list(_of(id=_INT, at=_MOMENT, kind=_TEXT, subject=_TEXT, text=_TEXT)), next=_NEXT),
    "Document": _part(_of(openapi=_TEXT, info={"type": "object"}, paths={"type": "object"})),
    "Problem": _part(
        _of(type=_TEXT, title=_TEXT, status=_INT, detail=_TEXT, instance=_TEXT, hint=_TEXT),
        reasons=_list(_TEXT),
    ),
}

_WHY = {
    400: "The request cannot be answered as it stands.",
    401: "Without a token, or with a wrong one. Not on the Unix socket.",
    404: "What is named is not there.",
    413: "The request has a body.",
    429: "Too much is asked at once.",
    503: "The store cannot be read, or the gateway is not all right.",
}


def document(routes: Sequence[Route]) -> Schema:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Heliograph",
            "version": __version__,
            "summary": "What a gateway for solar meters knows. Read-only.",
            "description": (
                "Energies are whole Wh, moments UTC, days those of the site's zone. Lists are bounded: `next` leads on."
                " Errors are problems (RFC 9457) whose `hint` is the next step."
            ),
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": {route.path: {"get": _operation(route)} for route in routes},
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": dict(SHAPES),
        },
    }


def _operation(route: Route) -> Schema:
    codes = [400, *([404] if route.may_miss else []), 413, 429, 503]
    operation = {
        "operationId": route.answer.__name__,
        "summary": route.text,
        "parameters": [_parameter(one, route) for one in route.parameters],
        "responses": {
            "200": {"description": "All right.", "content": _content("application/json", route.schema)},
            **{
                str(code): {"description": _WHY[code], "content": _content("application/problem+json", "Problem")}
                for code in sorted([*codes, *([] if route.path in OPEN else [401])])
            },
        },
    }
    return {**operation, "security": []} if route.path in OPEN else operation


def _content(media: str, schema: str) -> Schema:
    return {media: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _parameter(one: Parameter, route: Route) -> Schema:
    in_path = "{" + one.name + "}" in route.path
    return {
        "name": one.name,
        "in": "path" if in_path else "query",
        "description": one.text,
        "required": in_path or one.required,
        "schema": _kind(one),
    }


def _kind(one: Parameter) -> Schema:
    match one.kind:
        case "count":
            return {"type": "integer", "minimum": 1, "maximum": one.most, "default": one.default}
        case "number":
            return {"type": "integer", "minimum": 1, "maximum": LARGEST}
        case "name":
            return {"type": "string", "pattern": NAME}
        case "day":
            return {"anyOf": [_DAY, _NAMED_DAY]}
        case "moment":
            return {"anyOf": [{"type": "string", "format": "date-time"}, _DAY, _NAMED_DAY]}
        case "place":
            return {"type": "string", "pattern": NAME[:-1] + r"/\d{4}-\d\d-\d\d$"}
