"""What each entry of the chain says: the words of a proof, made from values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from decimal import Decimal
from typing import Any, Literal

from heliograph.core.chain import told
from heliograph.core.daily import Border, Day, Held
from heliograph.core.decode import Absent, addresses, kept, value
from heliograph.core.ledger import Seam, continuous
from heliograph.core.quantity import find
from heliograph.core.readings import Reading
from heliograph.core.registers import MeterMap, Order

Kind = Literal["config", "commission", "day", "held", "release", "seam", "verdict", "decision", "restored"]


def reading(one: Reading, seams: Sequence[Seam]) -> dict[str, Any]:
    """A reading as the evidence of a border. `offset_wh` is what the seams before it add to the device's counter."""
    source = one.source
    return {
        "at": told(one.moment.at),
        "boot": one.moment.boot_id,
        "since_boot_ms": round(one.moment.since_boot * 1000),
        "trusted": one.moment.trusted,
        "index_wh": one.index_wh,
        "offset_wh": continuous(seams, one.moment.at, one.index_wh or 0) - (one.index_wh or 0),
        "doubt": one.doubt,
        "words": "".join(f"{word:04x}" for word in one.words),
        "unit": source.unit if source else None,
        "function": source.function if source else None,
        "address": source.address if source else None,
        "map": source.map_digest if source else None,
        # Ratios that the device itself tells: they multiply the counter.
        "settings": {
            name: str(number)
            for name, number in sorted(one.values.items())
            if (quantity := find(name)) is not None and quantity.kind == "setting"
        },
    }


def border(one: Border, before: Reading, after: Reading | None, seams: Sequence[Seam]) -> dict[str, Any]:
    return {
        **_border(one),
        "before": reading(before, seams),
        "after": reading(after, seams) if after is not None else None,
    }


def _border(one: Border) -> dict[str, Any]:
    return {"at": told(one.at), "index_wh": one.index_wh, "total_wh": one.total_wh, "method": one.method}


def day(one: Day, closing: Mapping[str, Any], serial: str | None, software: str) -> dict[str, Any]:
    """A closed day; `closing` is its closing border with the readings, its opening border another entry's closing."""
    return {
        "meter": one.meter,
        "serial": serial,
        "day": one.day.isoformat(),
        "period_wh": one.period_wh,
        "total_wh": one.total_wh,
        "estimated": one.estimated,
        "opening": _border(one.opening),
        "closing": dict(closing),
        "software": software,
    }


def held(meter: str, entries: Sequence[Held], opening: Border | None, closing: Mapping[str, Any]) -> dict[str, Any]:
    """Days without a figure, the border before them and the one behind them, from which the next day goes on."""
    return {
        "meter": meter,
        "days": [{"day": one.day.isoformat(), "kind": one.kind, "reason": one.reason} for one in entries],
        "opening": _border(opening) if opening is not None else None,
        "closing": dict(closing),
    }


def seam(one: Seam, settled: int) -> dict[str, Any]:
    """A seam as it is recorded, and how many doubted readings it settled; `was` and `is` where the meaning changed."""
    said = {name: value for name, value in asdict(one).items() if not name.endswith("_meaning")}
    found = {"meter": one.meter, "seam": {**said, "at": told(one.at)}, "settled": settled}
    if one.old_meaning is not None and one.new_meaning is not None:
        found |= {"was": one.old_meaning.as_json(), "is": one.new_meaning.as_json()}
    return found


def verdict(
    uplink: str,
    state: str,
    rule: str,
    answer: str,
    process_id: str | None,
    request: Mapping[str, Any] | None,
    days: Iterable[tuple[str, str, date]],
) -> dict[str, Any]:
    """What a platform's answer meant: (meter, remote id, day) of every row, and the request they went with."""
    rows: dict[str, dict[str, Any]] = {}
    for meter, remote, which in days:
        rows.setdefault(meter, {"remote_id": remote, "days": []})["days"].append(which.isoformat())
    return {
        "uplink": uplink,
        "state": state,
        "rule": rule,
        "answer": answer,
        "process_id": process_id,
        "request": dict(request) if request is not None else None,
        "meters": rows,
    }


def decision(
    uplink: str,
    what: str,
    state: str,
    rule: str,
    because: str,
    days: Iterable[tuple[str, str, date]],
    renamed: str = "",
) -> dict[str, Any]:
    """What a person decided about days on their way to a platform: (meter, remote id, day) of every row.

    `renamed`: the name under which they go from there on, where it is another one.
    """
    said = verdict(uplink, state, rule, because, None, None, days)
    found = {"decision": what, "because": because}
    found |= {key: said[key] for key in ("uplink", "state", "rule", "meters")}
    return found | ({"renamed": renamed} if renamed else {})


def one_name_each(days: Iterable[tuple[str, str, date]]) -> Iterator[list[tuple[str, str, date]]]:
    """Parts in which each meter has one name: a request may carry its days under an old name and a corrected one."""
    left = list(days)
    while left:
        names: dict[str, str] = {}
        part = [one for one in left if names.setdefault(one[0], one[1]) == one[1]]
        left = [one for one in left if names[one[0]] != one[1]]
        yield part


def index_wh(
    map: MeterMap,
    production: str,
    order: Order | None,
    address: int,
    words: Sequence[int],
    factors: Mapping[str, Decimal],
) -> int | None:
    """The production counter in whole Wh, decoded anew from the register words that begin at `address`.

    `order` is the site's, where the device was set differently from its map.
    """
    register = map.register(production)
    if register is None:
        return None
    at = {address + number: word for number, word in enumerate(words)}
    if not set(addresses(register)) <= set(at):
        return None
    exponent = None
    if register.scale_register is not None and register.scale_register in at:
        exponent = at[register.scale_register] - (at[register.scale_register] >> 15 << 16)
    raw = [at[one] for one in addresses(register)]
    found = value(register, register.order or order or map.order, raw, exponent=exponent, factors=factors)
    return int(kept(register, found)) if not isinstance(found, Absent | str) else None
