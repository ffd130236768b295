"""A meter as data: what a file in `meters/` says once it has been checked.

These are plain frozen values; `heliograph.library` reads them from TOML and the JSON Schema for
editors is made from them, so the docstring under a field is what a technician's editor shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar, Literal

Function = Literal["holding", "input"]
"""Modbus function 3 (holding) or 4 (input): two separate address spaces."""

Type = Literal[
    "u16", "s16", "u32", "s32", "u64", "s64", "float32", "float64",
    "acc32", "acc64", "enum16", "enum32", "bitfield16", "bitfield32", "sunssf", "bcd", "text",
]  # fmt: skip

Order = Literal["ABCD", "CDAB", "BADC", "DCBA"]
"""Bytes of a number as they arrive: ABCD big-endian, CDAB low word first, BADC and DCBA with swapped bytes."""

Status = Literal["confirmed", "documented", "unverified"]
Contains = Literal["ac", "dc", "ac+battery"]
Night = Literal["answers", "zeros", "silent"]

FUNCTION_CODES: dict[str, int] = {"holding": 3, "input": 4}


def _key(field_name: str) -> str:
    """The key in the file: `with_` is written `with`, which Python keeps for itself."""
    return field_name.rstrip("_")


# Read by the library's checker: unknown keys are errors, the docstrings below are descriptions in the schema.
_CHECKED: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True, "alias_generator": _key}


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """One number or text that a device holds."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CHECKED

    quantity: str
    """What it is, a word of core/quantity.py."""
    type: Type
    address: int | None = None
    """Wire address, zero-based, as in the request; the manual's number belongs in a comment. With `model`: offset."""
    addresses: tuple[int, ...] = ()
    """Instead of `address` when the words of one number are not adjacent, in the order of `order`."""
    unit: str = ""
    """Unit of the scaled value, such as kWh; converted to what we keep (Wh)."""
    function: Function | None = None
    """Overrides the map's function."""
    order: Order | None = None
    """Overrides the map's byte order."""
    words: int | None = None
    """Registers of a text or BCD value; numbers know their own width."""
    scale: Decimal = Decimal(1)
    """value = raw x scale; negative turns the sign."""
    scale_register: int | None = None
    """Address of a sunssf register (same function): multiply by ten to its power; read in the same request."""
    times: tuple[str, ...] = ()
    """Quantities of this map (or given by the site) that multiply the value, such as ct_ratio."""
    absent: tuple[int, ...] = ()
    """Raw values, unsigned, that mean: there is no value."""
    zero_is_absent: bool = False
    """A raw zero is not to be believed (a dormant inverter's lifetime counter)."""
    range: tuple[Decimal, Decimal] | None = None
    """Lowest and highest plausible value in `unit`; narrower than the quantity's own range."""
    monotonic: bool | None = None
    """Counters: whether it should never fall in normal life; only such a counter may be production."""
    step: Decimal | None = None
    """Counters: resolution in `unit` where the device's is coarser than the type's."""
    rollover: Decimal | None = None
    """Counters: the value in `unit` after which it starts again at zero, where that is documented."""
    scale_exponent: int | None = None
    """Counters: what the scale register must hold for `step` and `rollover` to be true; under another there is none."""
    contains: Contains | None = None
    """Counters: AC, DC, or AC with battery discharge."""
    resettable: str = ""
    """Counters: how somebody can set it back on purpose, though it never falls by itself; `heliograph check` tells
    the site that chose it as production."""
    poll: bool = True
    """Whether it is read in every round; others are read on demand (`heliograph read --all`). The counter that is
    production on a site is read in every round whatever stands here."""
    alone: bool = False
    """Must be read in a request of its own."""
    model: int | tuple[int, ...] | None = None
    """SunSpec models that have it, a number or a list; `address` is then an offset from the model's ID register."""
    repeat: int | None = None
    """SunSpec: length in registers of the repeated group it belongs to; the 1 in `quantity` becomes the group's."""
    source: str = ""
    """Where this number comes from when it is not the map's source."""
    note: str = ""
    """What a technician should know about it."""

    @property
    def models(self) -> tuple[int, ...]:
        """The SunSpec models that have it; none where the address is the device's own."""
        return self.model if isinstance(self.model, tuple) else () if self.model is None else (self.model,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How fast the device may be asked: in the file text with a unit, such as "60ms" or "1s"; in here seconds."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CHECKED

    pause: float = 0.0
    """Least silence between an answer and the next request, beside the 3.5 characters of RTU."""
    after_connect: float = 0.0
    """Wait after a TCP connection or port was opened."""
    timeout: float = 0.5
    """Longest wait for the first byte of an answer after the request has left."""
    retries: int = 1
    """How often a read is repeated after silence or noise before the meter counts as not answering."""
    min_poll: float = 0.0
    """Polling more often than this disturbs the device."""
    turnaround: float = 0.01
    """Typical time the device thinks; used for planning only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A register whose value tells the device's kind."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CHECKED

    address: int
    """Wire address, zero-based."""
    type: Type
    """How the words are read."""
    values: tuple[int | str, ...]
    """What this kind of device answers; any one of them will do."""
    function: Function | None = None
    """Overrides the map's function."""
    order: Order | None = None
    """Overrides the map's byte order."""
    words: int | None = None
    """Registers of a text or BCD value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """How to recognise the device. One that answers something else is refused; one without such a register is not."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CHECKED

    serial: str | None = None
    """Quantity that holds the serial number."""
    match: tuple[Match, ...] = ()
    """Every one of these must fit (where the device has the register)."""
    required: bool = False
    """True: a device that refuses the identity registers is not this device."""
    hint: str = ""
    """What to do about a device that is refused, where the map knows better than to look for another map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """What is known of the devices of one maker beyond what SunSpec says; the site file takes it over."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CHECKED

    manufacturer: str
    """What the device's manufacturer text begins with, whatever its case."""
    night: Night | None = None
    """What these devices do between sunset and sunrise."""
    single_client: bool | None = None
    """Only one TCP client at a time is served."""
    close_after_poll: bool | None = None
    """Leave the connection to others between two rounds."""
    note: str = ""
    """What a technician should know about them; a comment in the site file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SunSpec:
    """A template: its registers are offsets into SunSpec models, which `heliograph map sunspec` finds on a device."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CHECKED

    bases: tuple[int, ...] = (40000, 50000, 0)
    """Addresses where the marker 0x53756E53 may stand, in the order they are tried."""
    models: tuple[int, ...] = ()
    """The models this map speaks of; what it is for comes first: one of these must be there."""
    beside: tuple[int, ...] = ()
    """Models that are taken along where the device has them, such as 160."""
    makers: tuple[Maker, ...] = ()
    """What is known of single makers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """Raw words and the value they must give: the map's own test, run without hardware."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CHECKED

    quantity: str
    """Which register of the map."""
    words: tuple[int, ...]
    """As they arrive, in address order (of `addresses`: in their order)."""
    value: Decimal | str | None
    """In the register's own `unit`, or "absent" (None in here) when the words mean that there is no value."""
    with_: dict[str, Decimal] = field(default_factory=dict)
    """Values of the quantities named in `times`."""
    scale_exponent: int | None = None
    """Value of the scale register."""
    origin: str = ""
    """Where the pair comes from: captured, transcribed from a manual, or synthetic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterMap:
    """One kind of meter: what its registers hold, how it may be asked, how it is recognised."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CHECKED

    name: str
    """The file's name without .toml; it stands in configurations and evidence, so it is for ever."""
    products: tuple[str, ...]
    """What is printed on the devices this map fits."""
    source: str
    """Title, version and date of the documents these numbers come from."""
    version: str
    """Of this map: a date, raised with every change of meaning."""
    status: Status
    """confirmed: compared with a device's display; documented: from the maker's or two agreeing sources; unverified:
    polls, but a site must say accept_unverified_map before anything is delivered."""
    registers: tuple[Register, ...]
    """One line each."""
    vectors: tuple[Vector, ...] = ()
    """Tests of the map, one line each."""
    maker: str = ""
    """Whose devices these are, as people call them: `heliograph map list` shows and finds it."""
    extends: str | None = None
    """Name of a map whose keys, registers and vectors are taken over; own keys and own registers win."""
    function: Function = "input"
    """Where registers live that say nothing else."""
    order: Order = "ABCD"
    """Bytes of a number that says nothing else."""
    max_words: int = 125
    """Most registers in one request."""
    fallback_words: tuple[int, ...] = ()
    """Smaller sizes to try, largest first, when a device refuses."""
    read_gaps: bool = False
    """True: undefined registers inside a block may be read (they answer 0 or anything)."""
    no_gap: tuple[tuple[int, int], ...] = ()
    """Ranges, first and last address, that no request may touch."""
    unit: int = 1
    """Unit id the device leaves the factory with."""
    port: int = 502
    """TCP port."""
    phases: Literal[1, 3] | None = None
    """Phases it measures."""
    production: str | None = None
    """The counter the map suggests; the site decides, for direction follows the cable."""
    from_site: tuple[str, ...] = ()
    """Quantities in `times` that no register holds, such as a ct_ratio: the site's configuration gives them."""
    night: Night = "answers"
    """What the device does between sunset and sunrise."""
    single_client: bool = False
    """Only one TCP client at a time is served: the gateway keeps all others out, and `heliograph check` says so."""
    close_after_poll: bool = False
    """Leave the TCP connection to others between two rounds; after_connect is kept in each of them."""
    timing: Timing = Timing()
    """How fast it may be asked."""
    identity: Identity = Identity()
    """How to recognise it."""
    sunspec: SunSpec | None = None
    """For devices whose registers are found by walking SunSpec models: the map is a template for site files."""

    def function_of(self, register: Register) -> Function:
        return register.function or self.function

    def order_of(self, register: Register) -> Order:
        return register.order or self.order

    def register(self, quantity: str) -> Register | None:
        """The first register of that quantity."""
        return next((r for r in self.registers if r.quantity == quantity), None)
