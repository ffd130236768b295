"""Writes an evidence pack: a piece of the chain with all that is needed to check it on any computer.

Lines of canonical JSON. First what it is, then maps, then entries in order with the requests and checkpoints they
belong to; entries that do not belong to the asked days are shown by their digest alone. `cli/export.py` adds the
signed manifest as the last line. deploy/PROOF.md describes every line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import date, datetime, timedelta
from typing import Any

from heliograph.core import chain
from heliograph.core.chain import Entry, Head, canonical, told
from heliograph.core.errors import UsageError
from heliograph.store import Store

FORMAT = 1


def pack(
    store: Store, site: str, first: date, last: date, meters: Collection[str], now: datetime
) -> Iterator[dict[str, Any] | bytes]:
    """The lines before the manifest, without their line ends; the first one as a dict, for the manifest repeats it."""
    # The day before opens the first one: its closing border has the readings.
    wanted = _Wanted((first - timedelta(days=1)).isoformat(), last.isoformat(), frozenset(meters))
    span = _span(store, wanted)
    if span is None:
        raise UsageError(
            f"nothing was closed from {first} to {last} for {', '.join(sorted(meters))}",
            hint="heliograph days shows what there is.",
        )
    begin, end = span
    before = next(store.chain.entries(begin - 1, begin - 1), None) if begin > 1 else None
    previous = before.hash if before is not None else chain.GENESIS
    yield {
        "kind": "pack",
        "format": FORMAT,
        "site": site,
        "from": first.isoformat(),
        "to": last.isoformat(),
        "meters": sorted(meters),
        "first": begin,
        "last": end.seq,
        "previous": previous.hex(),
        "head": end.hash.hex(),
        "made_at": told(now),
    }
    for digest, (name, text) in store.evidence.maps().items():
        yield canonical({"kind": "map", "digest": digest, "name": name, "text": text})
    signed = {one.seq: one for one in store.chain.checkpoints(begin, end.seq)}
    shown: set[str] = set()
    for entry in store.chain.entries(begin, end.seq):
        content = entry.content
        if not wanted(content):
            yield _line(b'{"digest":"' + chain.digest(entry.body).hex().encode() + b'"', entry)
        else:
            yield _line(b'{"body":' + entry.body, entry)
            request = content.get("request")
            if request is not None and request["sha256"] not in shown:
                shown.add(request["sha256"])
                path, body = store.outbox.claim_body(request["claim"])
                yield canonical({"kind": "request", "path": path, "body": body.decode("utf-8", "backslashreplace")})
        if (one := signed.get(entry.seq)) is not None:
            facts = {"seq": one.seq, "hash": one.hash.hex(), "at": told(one.at), "site": one.site}
            keys = {"key": one.key.hex(), "signature": one.signature.hex()}
            yield canonical({"kind": "checkpoint", **facts, **keys})


def _line(start: bytes, entry: Entry) -> bytes:
    # Put together by hand so that the body's bytes are the very ones that were hashed.
    return start + b',"hash":"' + entry.hash.hex().encode() + b'","seq":' + str(entry.seq).encode() + b"}"


class _Wanted:
    """Which entries are shown in full: those of the asked days and meters, and what these rest on."""

    def __init__(self, first: str, last: str, meters: frozenset[str]) -> None:
        self._first, self._last, self._meters = first, last, meters

    def dated(self, content: dict[str, Any]) -> bool:
        """Whether it speaks of an asked day."""
        match content["kind"]:
            case "day":
                days = [(content["meter"], content["day"])]
            case "commission":
                days = [(content["meter"], content["border"]["at"][:10])]
            case "held" | "release":
                named = (one["day"] if isinstance(one, dict) else one for one in content["days"])
                days = [(content["meter"], day) for day in named]
            case "verdict" | "decision":
                days = [(meter, day) for meter, rows in content["meters"].items() for day in rows["days"]]
            case _:
                return False
        return any(meter in self._meters and self._first <= day <= self._last for meter, day in days)

    def __call__(self, content: dict[str, Any]) -> bool:
        match content["kind"]:
            case "day" | "held" | "release" | "verdict" | "decision" | "commission":
                return self.dated(content)
            case "seam":
                return content["meter"] in self._meters
            case _:
                return True


def _config(store: Store, first: int) -> Entry | None:
    """What was said when the readings of the first entry were made, which may be before what was said at the entry."""
    entry = next(store.chain.entries(first, first))
    content = entry.content
    border = content.get("closing") or content.get("border") or {}
    read = datetime.fromisoformat(border["before"]["at"]) if border else None
    told = [one for one in store.chain.configurations() if one.seq <= first]
    before = [one for one in told if read is None or datetime.fromisoformat(one.content["at"]) <= read]
    return before[-1] if before else next(iter(told), None)


def _span(store: Store, wanted: _Wanted) -> tuple[int, Head] | None:
    """From the configuration in force at the first asked entry to the first checkpoint behind the last one."""
    first: int | None = None
    last: Entry | None = None
    for entry in store.chain.entries():
        if wanted.dated(entry.content):
            first, last = first or entry.seq, entry
    if first is None or last is None:
        return None
    config = _config(store, first)
    covered = store.chain.next_checkpoint(last.seq)
    end = Head(covered.seq, covered.hash) if covered is not None else Head(last.seq, last.hash)
    return (config.seq if config is not None else first), end
