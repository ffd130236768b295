"""Checks an evidence pack line by line, from its bytes alone: links, signatures, and that every figure adds up.

It trusts nothing the pack says of itself: hashes and sums are reckoned anew, counters decoded anew from their words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from heliograph.core import chain
from heliograph.core.chain import Checkpoint, canonical, fingerprint, pack_message
from heliograph.core.daily import in_proportion
from heliograph.core.daylight import LONGEST, Position, light
from heliograph.core.entries import index_wh
from heliograph.core.figures import kwh
from heliograph.core.ledger import Seam, continuous
from heliograph.core.meaning import meaning_of
from heliograph.core.registers import MeterMap

Verify = Callable[[bytes, bytes, bytes], bool]
"""Whether (public key, message, signature) belong together."""
MapOf = Callable[[str, Mapping[str, tuple[str, str]]], MeterMap | None]
"""The map of a digest from (name, text) by digest; None where the texts are not those of the digest."""

FINAL = "confirmed"
# What a decision of a person may make of a day on its way to a platform.
DECIDED = {"retry": ("due", "unclear"), "set-aside": ("rejected",)}
MOST_FINDINGS = 100


@dataclass(frozen=True, slots=True)
class Finding:
    line: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}"


@dataclass
class MeterSum:
    """Of the days a pack shows."""

    days: int = 0
    wh: int = 0
    estimated: int = 0
    held: int = 0
    """Held or missing."""
    first: str = ""
    last: str = ""
    confirmed: dict[str, int] = field(default_factory=dict)
    """Days by platform that confirmed them."""


@dataclass
class Report:
    findings: list[Finding] = field(default_factory=list)
    head: dict[str, Any] = field(default_factory=dict)
    """The first line."""
    key: bytes = b""
    """The public key that signed the pack."""
    entries: int = 0
    withheld: int = 0
    checkpoints: int = 0
    decoded: int = 0
    """Readings whose words were decoded anew."""
    meters: dict[str, MeterSum] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        return not self.findings


class Audit:
    """Feed it every line of a pack in order, with its line end; then ask for the report."""

    def __init__(self, verify: Verify, map_of: MapOf, *, key: bytes | None = None) -> None:
        """With `key`, only that device's signatures count."""
        self.report = Report()
        self._verify, self._map_of, self._expected = verify, map_of, key
        self._sha = hashlib.sha256()
        self._number = 0
        self._seq = 0
        self._hash = b""
        self._ended = False
        self._texts: dict[str, tuple[str, str]] = {}
        self._maps: dict[str, MeterMap | None] = {}
        self._requests: dict[str, int | None] = {}
        """Digests of bodies that verdicts speak of, and where first; None once the body was shown."""
        self._keys: dict[bytes, int] = {}
        self._config: dict[str, Any] = {}
        self._latest: datetime | None = None
        self._configs: list[tuple[datetime, dict[str, Any]]] = []
        self._borders: dict[tuple[str, str], tuple[int, int]] = {}
        self._seams: dict[str, list[Seam]] = {}
        self._meanings: dict[tuple[str, int], str] = {}
        """What a meter's counter means between two seams, by the number of seams before."""
        self._ratios: dict[tuple[str, int, str], float] = {}
        """The ratios that a device tells between two seams, likewise."""
        self._days: set[tuple[str, str]] = set()
        self._final: set[tuple[str, str, str]] = set()
        self._aside: set[tuple[str, str, str]] = set()

    def feed(self, line: bytes) -> None:
        self._number += 1
        if self._ended:
            self._find("there is something behind the manifest")
            return
        text = line[:-1] if line.endswith(b"\n") else line
        try:
            content = json.loads(text)
            kind = content.get("kind") if "seq" not in content or "kind" in content else "entry"
            if self._number == 1 or kind == "pack":
                self._begin(kind, content)
            elif kind == "manifest":
                self._end(text, content)
            elif kind == "entry":
                self._entry(text, content)
            elif kind == "map":
                self._texts[content["digest"]] = (content["name"], content["text"])
            elif kind == "request":
                self._request(content)
            elif kind == "checkpoint":
                self._checkpoint(content)
            else:
                self._find(f"nobody knows a line of kind {kind}")
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            self._find(f"cannot be read: {type(error).__name__} {error}")
        self._sha.update(line)

    def finish(self) -> Report:
        if not self._ended:
            self._number += 1
            self._find("the pack is cut off: its last line must be the signed manifest")
        for digest, line in self._requests.items():
            if line is not None:
                self._finding(line, f"the request {digest[:12]} that it speaks of is not in the pack")
        return self.report

    def _find(self, text: str) -> None:
        self._finding(self._number, text)

    def _finding(self, line: int, text: str) -> None:
        if len(self.report.findings) < MOST_FINDINGS:
            self.report.findings.append(Finding(line, text))

    # --- the frame: what it is, how it is linked, who signed it ---

    def _begin(self, kind: str, content: dict[str, Any]) -> None:
        if self._number != 1 or kind != "pack" or content["format"] != 1:
            self._find("a pack begins with a line of kind pack, format 1, and has one of them")
            return
        self.report.head = content
        self._seq, self._hash = content["first"] - 1, _raw(content["previous"])
        if content["first"] == 1 and self._hash != chain.GENESIS:
            self._find("the first entry of a chain follows on nothing")

    def _entry(self, text: bytes, content: dict[str, Any]) -> None:
        seq, stated = content["seq"], _raw(content["hash"])
        if seq != self._seq + 1:
            self._find(f"entry {seq} follows on entry {self._seq}: lines are missing, inserted or swapped")
        if "body" in content:
            tail = b',"hash":"' + content["hash"].encode() + b'","seq":' + str(seq).encode() + b"}"
            if not (text.startswith(b'{"body":') and text.endswith(tail)):
                raise ValueError("not in the form in which it was written")
            of_body = chain.digest(text[8 : -len(tail)])
        else:
            of_body = _raw(content["digest"])
            self.report.withheld += 1
        if chain.link(self._hash, of_body) != stated:
            self._find(f"entry {seq} was changed, or is not the one that followed entry {seq - 1}")
        self._seq, self._hash = seq, stated
        self.report.entries += 1
        if "body" in content:
            body = content["body"]
            if body["seq"] != seq:
                self._find(f"the body of entry {seq} says that it is entry {body['seq']}")
            self._judge(body)

    def _checkpoint(self, content: dict[str, Any]) -> None:
        signed = Checkpoint(
            content["seq"],
            _raw(content["hash"]),
            datetime.fromisoformat(content["at"]),
            content["site"],
            _raw(content["key"]),
            _raw(content["signature"]),
        )
        if (signed.seq, signed.hash) != (self._seq, self._hash):
            self._find(f"the checkpoint is about entry {signed.seq}, but stands behind entry {self._seq}")
        if not self._verify(signed.key, signed.message, signed.signature):
            self._find(f"the signature of the checkpoint over entry {signed.seq} is wrong")
        self._keys.setdefault(signed.key, self._number)
        self.report.checkpoints += 1

    def _end(self, text: bytes, content: dict[str, Any]) -> None:
        self._ended = True
        manifest = {name: value for name, value in content.items() if name not in ("signature", "key", "kind")}
        head = {name: value for name, value in self.report.head.items() if name != "kind"}
        told = {name: value for name, value in manifest.items() if name in head}
        key = self.report.key = _raw(content["key"])
        if text != canonical(content):
            self._find("the manifest is not in the form in which it was written")
        if not self._verify(key, pack_message(manifest), _raw(content["signature"])):
            self._find("the signature of the manifest is wrong")
        if self._expected is not None and key != self._expected:
            self._find(f"signed by {fingerprint(key)}, not by the expected {fingerprint(self._expected)}")
        if told != head:
            self._find("the first line says something else than the manifest")
        if manifest["sha256"] != self._sha.hexdigest() or manifest["lines"] != self._number - 1:
            self._find("the lines before are not those that were signed")
        if (manifest["last"], manifest["head"]) != (self._seq, self._hash.hex()):
            self._find(f"the pack must end with entry {manifest['last']}, but ends with entry {self._seq}")
        for other, line in self._keys.items():
            if other != key:
                self._finding(line, f"another key signed here: {fingerprint(other)}; was the device's key replaced?")

    def _request(self, content: dict[str, Any]) -> None:
        digest = hashlib.sha256(content["body"].encode()).hexdigest()
        if self._requests.get(digest) is None:
            self._find("no entry speaks of this request, or it was shown before")
        self._requests[digest] = None

    # --- what the entries say ---

    def _judge(self, body: dict[str, Any]) -> None:
        # A start on a clock that was not set yet may tell a moment long before: no entry is older than those before it.
        self._latest = max(self._latest or _when(body["at"]), _when(body["at"]))
        match body["kind"]:
            case "config":
                self._config = body
                self._configs.append((self._latest, body))
            case "commission":
                self._border(body["meter"], body["border"])
                chosen = self._config.get("meters", {}).get(body["meter"])
                begins = body["border"]["total_wh"]
                if chosen is not None and not body.get("said") and begins != chosen.get("baseline_wh", begins):
                    self._find(f"{body['meter']}: the running total begins at {kwh(begins)} kWh, not at its baseline")
            case "seam":
                self._seams.setdefault(body["meter"], []).append(_seam(body["seam"]))
            case "held":
                self._meter(body["meter"]).held += len(body["days"])
                self._border(body["meter"], body["closing"], body["opening"])
            case "release":
                self._meter(body["meter"]).held -= len(body["days"])
            case "day":
                self._day(body)
            case "verdict":
                self._verdict(body)
            case "decision":
                self._decision(body)

    def _meter(self, name: str) -> MeterSum:
        return self.report.meters.setdefault(name, MeterSum())

    def _day(self, body: dict[str, Any]) -> None:
        meter, day, opening, closing = body["meter"], body["day"], body["opening"], body["closing"]
        where = f"{meter} {day}"
        if (meter, day) in self._days:
            self._find(f"{where} has two values")
        self._days.add((meter, day))
        known = self._borders.get((meter, opening["at"]))
        if known is None:
            if self.report.head["first"] == 1 and not self.report.withheld:
                self._find(f"{where} opens at {opening['at']}, which closed no day before it")
            self._borders[meter, opening["at"]] = (opening["index_wh"], opening["total_wh"])
        elif known != (opening["index_wh"], opening["total_wh"]):
            self._find(f"{where} does not open where the day before it closed")
        self._border(meter, closing, opening)
        period = body["period_wh"]
        if period < 0 or period != closing["index_wh"] - opening["index_wh"]:
            self._find(f"{where}: {kwh(period)} kWh is not what the counter moved")
        if body["total_wh"] != closing["total_wh"] or opening["total_wh"] + period != closing["total_wh"]:
            self._find(f"{where}: the running total does not move by the day's {kwh(period)} kWh")
        found = self._meter(meter)
        found.days, found.wh, found.estimated = found.days + 1, found.wh + period, found.estimated + body["estimated"]
        found.first, found.last = min(found.first or day, day), max(found.last, day)

    def _border(self, meter: str, border: dict[str, Any], opening: dict[str, Any] | None = None) -> None:
        known = self._borders.setdefault((meter, border["at"]), (border["index_wh"], border["total_wh"]))
        if known != (border["index_wh"], border["total_wh"]):
            self._find(f"{meter}: two values for the counter at {border['at']}")
        before = self._reading(meter, border["before"])
        after = self._reading(meter, border["after"]) if border["after"] is not None else None
        if not _rests(border, opening, before, after, self._config.get("position")):
            self._find(f"{meter}: the counter at {border['at']} does not follow from its readings ({border['method']})")

    def _reading(self, meter: str, reading: dict[str, Any]) -> int:
        """The continuous counter of a reading, in Wh."""
        index: int = reading["index_wh"]
        offset = continuous(self._seams.get(meter, []), _when(reading["at"]), index) - index
        if self.report.head["first"] == 1 and offset != reading["offset_wh"]:
            self._find(f"{meter}: the seams before {reading['at']} add {offset} Wh, not {reading['offset_wh']}")
        if reading["map"]:
            self._decode(meter, reading)
        return index + int(reading["offset_wh"])

    def _decode(self, meter: str, reading: dict[str, Any]) -> None:
        digest = reading["map"]
        if digest not in self._maps:
            self._maps[digest] = self._map_of(digest, self._texts)
        # What was said about the meter when it was read.
        then = [said for since, said in self._configs if since <= _when(reading["at"])] or [self._config]
        map, chosen = self._maps[digest], then[-1].get("meters", {}).get(meter)
        if map is None:
            self._find(f"{meter}: the map {digest[:12]} is not in the pack, or was changed")
            return
        if chosen is None:
            return  # older than the first configuration in the chain: carried over, decoded by nobody
        words = [int(reading["words"][at : at + 4], 16) for at in range(0, len(reading["words"]), 4)]
        factors = {name: Decimal(text) for name, text in {**reading["settings"], **chosen["factors"]}.items()}
        found = index_wh(map, chosen["production"], chosen["order"], reading["address"], words, factors)
        self._mean(meter, reading, map, chosen)
        if found != reading["index_wh"]:
            shown = "nothing" if found is None else f"{kwh(found)} kWh"
            self._find(f"{meter}: the words {reading['words']} say {shown}, not {kwh(reading['index_wh'])} kWh")
        self.report.decoded += 1

    def _mean(self, meter: str, reading: Mapping[str, Any], map: MeterMap, chosen: Mapping[str, Any]) -> None:
        """Between two seams a counter is read in one way; told only where it was looked after when it was read."""
        if "means" not in chosen:
            return
        map = replace(map, order=chosen["order"]) if chosen["order"] else map
        means = meaning_of(map, chosen["production"], chosen["factors"])
        if means is None or means.digest != chosen["means"]:
            self._find(f"{meter}: its counter is not what the configuration says of it at {reading['at']}")
            return
        at = _when(reading["at"])
        before = [seam for seam in self._seams.get(meter, []) if seam.kind != "correction" and seam.at <= at]
        if self._meanings.setdefault((meter, len(before)), means.digest) != means.digest:
            self._find(f"{meter}: at {reading['at']} its counter is read in another way than before, without a seam")
        for name in [one.name for one in means.factors if one.site is None and one.name in reading["settings"]]:
            ratio = float(reading["settings"][name])
            known = self._ratios.setdefault((meter, len(before), name), ratio)
            if known != ratio:
                self._find(f"{meter}: at {reading['at']} its {name} is {ratio:g} instead of {known:g}, without a seam")

    def _verdict(self, body: dict[str, Any]) -> None:
        for meter, rows in body["meters"].items():
            for day in rows["days"]:
                if (meter, day) not in self._days and not self._partial(meter, day):
                    self._find(f"{body['uplink']} answered about {meter} {day}, which was not closed")
                row = (body["uplink"], meter, day)
                if row in self._final:
                    self._find(f"{body['uplink']}: {meter} {day} was confirmed before")
                if row in self._aside:
                    self._find(f"{body['uplink']} answered about {meter} {day}, which was set aside")
                if body["state"] == FINAL:
                    self._final.add(row)
                    confirmed = self._meter(meter).confirmed
                    confirmed[body["uplink"]] = confirmed.get(body["uplink"], 0) + 1
        if body["request"] is not None:
            self._requests.setdefault(body["request"]["sha256"], self._number)

    def _decision(self, body: dict[str, Any]) -> None:
        """What a person decided: about closed days that are not confirmed; a retry undoes a set-aside."""
        what, uplink = body["decision"], body["uplink"]
        if body["state"] not in DECIDED.get(what, ()):
            self._find(f"nobody can decide {what} so that days at {uplink} are {body['state']}")
        for meter, rows in body["meters"].items():
            for day in rows["days"]:
                if (meter, day) not in self._days and not self._partial(meter, day):
                    self._find(f"somebody decided about {meter} {day}, which was not closed")
                row = (uplink, meter, day)
                if row in self._final:
                    self._find(f"{uplink}: {meter} {day} was confirmed before somebody decided {what}")
                if what == "set-aside":
                    self._aside.add(row)
                else:
                    self._aside.discard(row)

    def _partial(self, meter: str, day: str) -> bool:
        """Whether the pack was not asked for this day: a batch carries other meters and days too."""
        head = self.report.head
        return meter not in head["meters"] or not head["from"] <= day <= head["to"]


def _raw(hex: str) -> bytes:
    """Bytes from hex in its one form: upper case would be a change that nothing else sees."""
    raw = bytes.fromhex(hex)
    if raw.hex() != hex:
        raise ValueError("hex digits not in the form in which they were written")
    return raw


def _seam(said: Mapping[str, Any]) -> Seam:
    return Seam(**{**said, "at": _when(said["at"])})


def _when(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _rests(
    border: Mapping[str, Any],
    opening: Mapping[str, Any] | None,
    before: int,
    after: int | None,
    place: list[str] | None,
) -> bool:
    """Whether a border's index is what its method makes of the readings (continuous, in Wh)."""
    index: int = border["index_wh"]
    since, at = _when(border["before"]["at"]), _when(border["at"])
    if opening is not None and opening["method"] == "platform" and since < _when(opening["at"]):
        since, before = _when(opening["at"]), opening["index_wh"]  # as daily.base
    match border["method"]:
        case "start" | "read":
            return index == before
        case "still":
            return index == before == after
        case "carry":
            return after is not None and index == before
        case "split" | "daylight" if after is not None:
            until = _when(border["after"]["at"])
            if not since <= at <= until or since == until:
                return False
            if border["method"] == "split":
                return index == before + in_proportion(after - before, at - since, until - since)
            # The light of an edited date's thousands of years would take as long to reckon.
            if place is None or until - since > LONGEST:
                return False
            position = Position(float(place[0]), float(place[1]))
            whole = light(position, since, until)
            return whole > 0 and index == before + (after - before) * light(position, since, at) // whole
        case "platform":
            return before <= index and after is not None and index <= after
        case _:
            return False
