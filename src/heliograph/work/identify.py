"""Who answers at a unit, and which maps fit by what the device says of itself. Reads only, and stores nothing.

The only evidence is what maps name as identity: registers that tell the kind, and the serial number. A register of
the map that decodes into its range is a check afterwards, told as one, and chooses nothing. Three things are known
of real devices and kept in mind here:

* many answer 0 to registers they do not have (Eastron does), so a zero proves nothing, neither for nor against;
* many maps name no register that tells the kind, so several may be possible: then all of them are told;
* SunSpec templates fit a model, not a device: a SunSpec device is told as one, and gets a map of its own first;
* some answer what they do not have with silence, which costs a time-out each and is no different from a refusal;
* a kind that is told by a small number (Deye has 2 to 6 where others keep their state) is another make's by chance, so
  it counts only beside a serial number, where the map has one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

from heliograph.core.decode import Absent, reading, value, width
from heliograph.core.errors import BusError, BusGarbled, BusRefused, BusTimeout, BusUnreachable
from heliograph.core.registers import Function, Match, MeterMap, Order, Register, Timing
from heliograph.core.sunspec import MARKER, Chain
from heliograph.ports import Bus
from heliograph.work.discover import walk

Answer = Literal["words", "refusal", "gateway", "silence", "garbled"]
"""`refusal`: a Modbus exception, which is an answer. `gateway`: what stands between says that nobody is there."""
Evidence = Literal["named", "serial", "possible"]
"""`named`: registers that tell the kind fit. `serial`: nothing tells the kind, but a serial number stands where the
map has it. `possible`: nothing speaks for the map but that nothing speaks against it."""

QUICK = Timing(pause=0.06, timeout=0.2, retries=0)
"""60 ms is what Eastron's sheets ask for; the slowest answer reported of an SDM630 came after 112 ms."""
SLOW = Timing(pause=0.3, timeout=0.6, retries=0)
"""For whoever is silent once although it has answered: Solis inverters hear nothing that comes within 300 ms."""
NOBODY_BEHIND = {10, 11}
"""Exceptions by which a gateway says that it reached no device."""
ORDERS: tuple[Order, ...] = ("ABCD", "CDAB", "BADC", "DCBA")
MORE_TRIES = 3
"""How often a question is asked again that was answered by garbage."""
SMALL = 16
"""A smaller number may stand at that place by chance: then other kinds are asked for too."""
LEAST_W, MOST_W = 100, 5_000_000
"""Of a device that says how powerful it is."""
COMMON_TEXTS = (2, 18, 50)
"""Offsets in SunSpec's common model: maker, model and serial number, 16 registers each."""
TEXT = Register(quantity="model", type="text", words=16)
STRENGTH: dict[Evidence, int] = {"named": 0, "serial": 1, "possible": 2}
CHECKED = ("frequency", "voltage_l1n", "voltage_ln_avg", "voltage_l1l2", "dc_voltage")
"""What is read to see whether the map's own registers make sense, the first that the map has."""
_SERIAL_TEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/#-]{3,}")


@dataclass(frozen=True, slots=True)
class Question:
    function: Function
    address: int
    count: int

    def __str__(self) -> str:
        return f"{self.function} 0x{self.address:04X}" + (f"+{self.count}" if self.count > 1 else "")


ALIVE = Question("holding", 0, 2)
"""Asked first: nearly every device knows function 3, and whoever does not have this register says so."""
ALIVE_TOO = Question("input", 0, 2)
"""Asked of a unit that was silent, when there is time for a second look."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of one question."""

    question: Question
    answer: Answer
    words: tuple[int, ...] = ()
    told: str = ""
    """The bus' own words where none came."""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Fit:
    """A map that this device may be of."""

    map: MeterMap
    evidence: Evidence
    because: tuple[str, ...] = ()
    """What was read, as a person would say it."""
    serial: str = ""
    order: Order | None = None
    """The identity fits only when bytes are taken in this order, which is not the map's."""
    check: str = ""
    """What one register of the map shows; no evidence for the kind."""
    sound: bool | None = None
    """Whether that is what the map expects; None where nothing could be checked."""
    rated_kw: float | None = None
    """Nameplate power, where a device that is named tells its own."""
    matched: frozenset[tuple[Question, str]] = frozenset()
    refused: bool = False
    """The map insists on something that reads 0 here: it would refuse this device when it is polled."""
    unlikely: bool = False
    """What was matched does not stand there by chance."""


@dataclass(frozen=True, slots=True)
class SunSpec:
    """What a SunSpec device announces."""

    chain: Chain | None
    """None where what stands behind the marker cannot be followed."""
    maker: str = ""
    model: str = ""
    serial: str = ""
    templates: tuple[str, ...] = ()
    """The templates that have a model of its chain."""
    told: str = ""
    """Why it cannot be followed."""

    def __str__(self) -> str:
        if self.chain is None:
            return f"SunSpec marker, but {self.told}"
        models = ", ".join(str(model.number) for model in self.chain.models)
        return f"{' '.join(filter(None, (self.maker, self.model)))} SunSpec device (models {models})".strip()


@dataclass(frozen=True, slots=True)
class Sighting:
    """What is known of one unit. `fits` holds all that may be, the best evidence first."""

    unit: int
    answer: Answer
    told: str = ""
    """How it answered the first question, or what came instead."""
    hint: str = ""
    fits: tuple[Fit, ...] = ()
    heard: tuple[Heard, ...] = ()
    sunspec: SunSpec | None = None

    @property
    def here(self) -> bool:
        """Whether a device answers at this unit."""
        return self.answer in ("words", "refusal")

    @property
    def best(self) -> Fit | None:
        """The one map that the device itself names; None where none or several are named."""
        named = [fit for fit in self.fits if fit.evidence == "named"]
        return named[0] if len(named) == 1 else None

    @property
    def ambiguous(self) -> bool:
        """Whether a person has to choose between maps."""
        return self.here and self.best is None

    @property
    def candidates(self) -> tuple[Fit, ...]:
        """The fits with the strongest evidence there is, those whose own registers make sense before the others."""
        if not self.fits:
            return ()
        return tuple(fit for fit in self.fits if fit.evidence == self.fits[0].evidence)

    @property
    def serial(self) -> str:
        """The serial number, where all the best fits agree on it."""
        if self.sunspec is not None and self.sunspec.serial:
            return self.sunspec.serial
        found = {fit.serial for fit in self.candidates}
        return found.pop() if len(found) == 1 else ""

    def __str__(self) -> str:
        if not self.here:
            return f"unit {self.unit}: {self.told}"
        number = f", serial {self.serial}" if self.serial else ""
        if (best := self.best) is not None:
            return f"unit {self.unit}: {best.map.name}{number} ({'; '.join(best.because)})"
        if self.sunspec is not None:
            return f"unit {self.unit}: {self.sunspec}{number}; its map is made by: heliograph map sunspec"
        if not self.fits:
            return f"unit {self.unit}: answers, but fits no map"
        names = [fit.map.name for fit in self.candidates]
        tells = {
            "named": "the device fits several maps",
            "serial": "nothing it says tells its kind",
            "possible": "it says nothing about itself",
        }[self.candidates[0].evidence]
        return f"unit {self.unit}: {tells}{number}; perhaps {' or '.join(names)}"


def alive(bus: Bus, unit: int, timing: Timing, question: Question = ALIVE) -> Sighting:
    """Whether anybody answers at that unit, in one request. Raises BusUnreachable when the line itself is down."""
    heard = _ask(bus, unit, question, timing)
    return _first(unit, heard)


def identify(
    bus: Bus, unit: int, maps: Sequence[MeterMap], timing: Timing = QUICK, *, first: Sighting | None = None
) -> Sighting:
    """Who answers at `unit`, and which of `maps` fit by identity.

    A silent unit costs one request, each distinct question is asked once, and no more of them once the kind is known.
    On a serial line a refused question costs a time-out (bus/modbus.py), so a short one is worth its while.
    `first`: what `alive` has just found there. Raises BusUnreachable when the line itself is down.
    """
    first = first or alive(bus, unit, timing)
    if not first.here:
        return first
    asker = _Asker(bus, unit, timing, first.heard)
    templates = [map for map in maps if _is_template(map)]
    maps = [map for map in maps if not _is_template(map)]
    sure = _ask_for_kind(maps, asker)
    announced = None if sure else _sunspec(bus, unit, templates, asker, timing)
    left = [fit for map in maps if (fit := _by_kind(map, asker)) is not None]
    asker.ask_all(_serials(fit.map for fit in left if _slight(fit)))
    left = [_doubted(fit, asker) for fit in left]
    named = [fit for fit in left if fit.evidence == "named"]
    if named or announced is not None:
        left = _closest(named)
    asker.ask_all(_serials(fit.map for fit in left))
    left = [_with_serial(fit, asker) for fit in left]
    checks = {fit.map.name: _check_register(fit.map) for fit in left}
    most = min((STRENGTH[fit.evidence] for fit in left), default=0)
    strongest = [fit.map for fit in left if STRENGTH[fit.evidence] == most]
    asker.ask_all(_distinct(_question_of(map, r) for map in strongest if (r := checks[map.name]) is not None))
    fits = [checked for fit in left if (checked := _checked(fit, checks[fit.map.name], asker)) is not None]
    fits = [_with_power(fit, asker) for fit in fits]
    fits.sort(key=_rank)
    return replace(first, fits=tuple(fits), heard=asker.all(), sunspec=announced)


def _rank(fit: Fit) -> tuple[object, ...]:
    return STRENGTH[fit.evidence], fit.refused, fit.sound is not True, fit.order is not None, fit.map.name


# -- asking -------------------------------------------------------------------------------------------------------


def _ask(bus: Bus, unit: int, question: Question, timing: Timing) -> Heard:
    try:
        return Heard(question, "words", bus.read(unit, question.function, question.address, question.count, timing))
    except BusRefused as refused:
        kind: Answer = "gateway" if refused.code in NOBODY_BEHIND else "refusal"
        return Heard(question, kind, (), refused.message, refused.hint)
    except BusTimeout as silence:
        return Heard(question, "silence", (), silence.message, silence.hint)
    except BusGarbled as garbled:
        return Heard(question, "garbled", (), garbled.message, garbled.hint)


def _first(unit: int, heard: Heard) -> Sighting:
    told = heard.told or f"answers {heard.question}"
    return Sighting(unit, heard.answer, told, heard.hint, (), (heard,))


class _Asker:
    """Asks a unit each question once, and remembers what came."""

    def __init__(self, bus: Bus, unit: int, timing: Timing, heard: Iterable[Heard]) -> None:
        self._bus, self._unit, self._timing = bus, unit, timing
        self._heard = {one.question: one for one in heard}
        self._patient = False

    def ask_all(self, questions: Iterable[Question]) -> None:
        for question in questions:
            if question not in self._heard:
                self._heard[question] = self._ask(question)

    def _ask(self, question: Question) -> Heard:
        heard = _ask(self._bus, self._unit, question, self._timing)
        for _ in range(MORE_TRIES):
            if heard.answer == "garbled":
                heard = _ask(self._bus, self._unit, question, self._timing)
        if heard.answer == "silence" and not self._patient:
            # Perhaps it was asked too soon. If it stays silent now, silence is its way to say no: that is believed.
            self._patient = True
            self._timing = replace(
                self._timing,
                pause=max(self._timing.pause, SLOW.pause),
                timeout=max(self._timing.timeout, SLOW.timeout),
            )
            heard = _ask(self._bus, self._unit, question, self._timing)
        return heard

    def heard(self, question: Question) -> Heard | None:
        return self._heard.get(question)

    def words(self, question: Question) -> tuple[int, ...] | None:
        heard = self._heard.get(question)
        return heard.words if heard is not None and heard.answer == "words" else None

    def all(self) -> tuple[Heard, ...]:
        return tuple(self._heard.values())


def _distinct(questions: Iterable[Question]) -> list[Question]:
    """Each once, what most maps want to know first."""
    return [question for question, _ in Counter(questions).most_common()]


def _is_template(map: MeterMap) -> bool:
    """Whether it fits a SunSpec model, wherever that stands, and no device by itself."""
    return map.sunspec is not None


def _sunspec(bus: Bus, unit: int, templates: Sequence[MeterMap], asker: _Asker, timing: Timing) -> SunSpec | None:
    """What the device announces, where one of the templates' bases holds the marker."""
    bases = dict.fromkeys(base for map in templates if map.sunspec is not None for base in map.sunspec.bases)
    for base in bases:
        marker = Question("holding", base, 2)
        asker.ask_all([marker])
        if asker.words(marker) != (MARKER >> 16, MARKER & 0xFFFF):
            continue
        try:
            chain = walk(bus, unit, (base,), replace(timing, timeout=max(timing.timeout, SLOW.timeout), retries=1))
        except BusUnreachable:
            raise
        except BusError as error:
            return SunSpec(None, told=error.message)
        texts = [Question("holding", chain.models[0].address + offset, 16) for offset in COMMON_TEXTS]
        asker.ask_all(texts)
        maker, model, serial = (
            str(_shown(TEXT, "ABCD", words) or "") if (words := asker.words(text)) else "" for text in texts
        )
        fitting = tuple(map.name for map in templates if _has_model(map, chain))
        return SunSpec(chain, maker, model, serial, fitting)
    return None


def _has_model(template: MeterMap, chain: Chain) -> bool:
    wanted = template.sunspec.models if template.sunspec is not None else ()
    return any(model.number in wanted for model in chain.models)


def _ask_for_kind(maps: Sequence[MeterMap], asker: _Asker) -> bool:
    """Asks for all kinds, until one is named beyond doubt; then only for what else its family wants to know.

    Whether one was.
    """
    left = _kinds(maps)
    sure = False
    while left:
        asker.ask_all(left[:1])
        named = [map for map in maps if map.identity.match and _beyond_doubt(map, asker)]
        if named:
            sure = True
            known = set(_kinds(named))
            left = _kinds(map for map in maps if known & set(_kinds([map])))
        left = [question for question in left if asker.heard(question) is None]
    return sure


def _beyond_doubt(map: MeterMap, asker: _Asker) -> bool:
    fit = _by_kind(map, asker)
    return fit is not None and fit.order is None and fit.unlikely


def _kinds(maps: Iterable[MeterMap]) -> list[Question]:
    return _distinct(_question_of(map, _register(match)) for map in maps for match in map.identity.match)


def _serials(maps: Iterable[MeterMap]) -> list[Question]:
    return _distinct(_question_of(map, r) for map in maps if (r := _serial_register(map)) is not None)


def _register(match: Match) -> Register:
    return Register(
        quantity="model",
        type=match.type,
        address=match.address,
        words=match.words,
        function=match.function,
        order=match.order,
    )


def _serial_register(map: MeterMap) -> Register | None:
    register = map.register(map.identity.serial) if map.identity.serial else None
    return register if register is not None and _plain(register) else None


def _check_register(map: MeterMap) -> Register | None:
    found = [r for name in CHECKED if (r := map.register(name)) is not None]
    found += [r for r in map.registers if r.poll]  # a map without any of these: at least the device should have it
    return next((r for r in found if _plain(r) and not r.times), None)


def _plain(register: Register) -> bool:
    """Whether it can be read by itself at a place that the map knows."""
    return not register.models and register.address is not None and register.scale_register is None


def _question_of(map: MeterMap, register: Register) -> Question:
    return Question(map.function_of(register), register.address or 0, width(register))


# -- judging ------------------------------------------------------------------------------------------------------


def _by_kind(map: MeterMap, asker: _Asker) -> Fit | None:
    """What the registers that tell the kind say about this map; None where they say that it is another."""
    because: list[str] = []
    proven: set[tuple[Question, str]] = set()
    turned: Order | None = None
    refused = unlikely = False
    for match in map.identity.match:
        register = _register(match)
        question = _question_of(map, register)
        words = asker.words(question)
        if words is None:
            heard = asker.heard(question)
            if map.identity.required and (heard is None or heard.answer != "garbled"):
                return None
            continue  # what noise has eaten speaks neither for the map nor against it
        order = map.order_of(register) if match.type != "text" else match.order or "ABCD"
        shown = _shown(register, order, words)
        if shown in match.values:
            if any(words):
                because.append(f"{question} is {_text(shown)}")
                proven.add((question, _text(shown)))
                unlikely |= isinstance(shown, str) or (shown is not None and shown >= SMALL)
            else:
                because.append(f"{question} is 0 as it should be, which proves nothing")
            continue
        if not any(words):
            if map.identity.required:
                return None
            because.append(f"{question} is 0, which proves nothing, but this map will refuse it")
            refused = True
            continue
        other = next((o for o in ORDERS if o != order and _shown(register, o, words) in match.values), None)
        if other is None:
            return None
        turned = other
        because.append(f"{question} is {_text(_shown(register, other, words))} only if read as {other}, not {order}")
        proven.add((question, other))
    evidence: Evidence = "named" if proven else "possible"
    told = tuple(because)
    return Fit(map, evidence, told, order=turned, matched=frozenset(proven), refused=refused, unlikely=unlikely)


def _doubted(fit: Fit, asker: _Asker) -> Fit:
    """A kind told by small numbers alone, without the serial number that its map knows of, is only possible."""
    if not _slight(fit) or _serial_register(fit.map) is None or _with_serial(fit, asker).serial:
        return fit
    because = (*fit.because, "which other makes may hold as well, and no serial number stands where this map has it")
    return replace(fit, evidence="possible", because=because, matched=frozenset())


def _slight(fit: Fit) -> bool:
    return fit.evidence == "named" and not fit.unlikely and fit.order is None


def _shown(register: Register, order: Order, words: tuple[int, ...]) -> int | str | Decimal | None:
    if register.type == "text":
        register = replace(register, order=order)
    found = value(register, order, words)
    return None if isinstance(found, Absent) else found


def _text(shown: object) -> str:
    return f"{shown}" if not isinstance(shown, Decimal) or shown < 0x10000 else f"0x{int(shown):X}"


def _closest(named: Sequence[Fit]) -> list[Fit]:
    """Without maps of a family whose whole identity is only a part of what another one proved."""
    straight = [fit for fit in named if fit.order is None] or list(named)
    return [fit for fit in straight if not any(fit.matched < other.matched for other in straight)]


def _with_serial(fit: Fit, asker: _Asker) -> Fit:
    register = _serial_register(fit.map)
    if register is None or (words := asker.words(question := _question_of(fit.map, register))) is None:
        return fit
    order = fit.order or fit.map.order_of(register)
    shown = reading(register, order, words)
    serial = ""
    if isinstance(shown, str) and _SERIAL_TEXT.fullmatch(shown):
        serial = shown
    elif isinstance(shown, int | float) and shown > 0 and set(words) != {0xFFFF}:
        serial = str(int(shown))
    if not serial:
        return fit
    because = (*fit.because, f"{question} holds a serial number")
    return replace(fit, serial=serial, because=because, evidence="named" if fit.evidence == "named" else "serial")


def _with_power(fit: Fit, asker: _Asker) -> Fit:
    register = fit.map.register("rated_power") if fit.evidence == "named" else None
    if register is None or not _plain(register) or register.times:
        return fit
    question = _question_of(fit.map, register)
    asker.ask_all([question])
    words = asker.words(question)
    watts = reading(register, fit.order or fit.map.order_of(register), words) if words else None
    if not isinstance(watts, int | float) or not LEAST_W <= watts <= MOST_W:
        return fit
    return replace(fit, rated_kw=watts / 1000)


def _checked(fit: Fit, register: Register | None, asker: _Asker) -> Fit | None:
    """With what one of its own registers shows; None where a device that names no kind has no such register."""
    if register is None:
        return fit
    question = _question_of(fit.map, register)
    heard = asker.heard(question)
    if heard is None:
        return fit
    name = register.quantity
    if heard.answer != "words":
        if fit.evidence != "named":
            return None
        return replace(fit, check=f"{name} at {question} does not answer", sound=False)
    order = fit.map.order_of(register)
    shown = reading(register, fit.order or order, heard.words)
    if not isinstance(shown, Absent) and (shown or not isinstance(shown, int | float)):
        check = f"{name} reads {shown:g}" if isinstance(shown, float) else f"{name} reads {shown}"
        return replace(fit, check=check, sound=True if name in CHECKED else None)
    if not any(heard.words):
        if name not in CHECKED:
            return replace(fit, check=f"{name} reads 0")
        asleep = fit.map.night != "answers"
        check = f"{name} reads 0" + (", as it may at night" if asleep else "")
        return replace(fit, check=check, sound=None if asleep else False)
    for other in ORDERS:
        if other != (fit.order or order):
            turned = reading(register, other, heard.words)
            if name == "frequency" and isinstance(turned, float):
                check = f"frequency reads {turned:g} only as {other}: the words come in another order than the map's"
                return replace(fit, check=check, sound=False, order=fit.order or other)
    why = shown.reason if isinstance(shown, Absent) else f"{shown}"
    return replace(fit, check=f"{name}: {why}", sound=False)
