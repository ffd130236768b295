"""`Health`: the one snapshot that CLI, page and outputs show. An alarm is a line in it and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from typing import Any, Literal

from heliograph.core.delivery import Blocked
from heliograph.core.shown import Quality

MeterState = Literal["ok", "stale", "doubtful", "never read"]


@dataclass(frozen=True, slots=True)
class MeterHealth:
    id: str
    bus: str
    unit: int
    map: str
    state: MeterState
    last_at: datetime | None
    index_wh: int | None
    """Production counter as last believed."""
    today_wh: int | None
    """Production since local midnight so far."""
    total_wh: int | None
    """Running total, baseline included."""
    last_day: date | None
    last_day_wh: int | None
    doubt: str
    error: str
    """Latest failure of the meter while it lasts; known only to the running daemon."""
    seam: str
    """The newest swap, reset, rollover, change or correction."""
    proposal: str
    """While the counter is in doubt: the command that records a seam, with what was read last on both sides."""
    changed: str = ""
    """Why nothing is booked of a counter whose map or settings were changed, and what to do; '' when all is well."""
    night: str = ""
    """Whether the device answers between sunset and sunrise, sends zeros or is silent, as its map has it."""
    total_at: datetime | None = None
    """Moment of the stored reading behind `total_wh` and `today_wh`; `last_at` is newer where nothing is stored."""
    total_old: bool = False
    """Whether that is longer ago than two stored readings of the meter may be apart."""
    today_since: datetime | None = None
    """The local midnight that `today_wh` begins with."""
    rising_wh: int | None = None
    """`total_wh` for whoever takes a fall for a reset, and would count all of it once more: where a correction has
    lowered it, this one waits, no lower than the last closed day and than this life of the daemon has shown, until it
    is overtaken."""

    @property
    def total_quality(self) -> Quality:
        """Of `rising_wh`: "uncertain" where it is of an earlier moment than it should be, or waits."""
        if self.rising_wh is None:
            return "bad"
        return self._current if self.rising_wh == self.total_wh else "uncertain"

    @property
    def today_quality(self) -> Quality:
        return "bad" if self.today_wh is None else self._current

    @property
    def today_at(self) -> datetime | None:
        """Moment that `today_wh` is of: what was read last before midnight is known to be 0 at midnight."""
        moments = [at for at in (self.total_at, self.today_since) if at is not None]
        return max(moments) if self.total_at is not None else None

    @property
    def _current(self) -> Quality:
        return "good" if self.state == "ok" and not self.total_old else "uncertain"


@dataclass(frozen=True, slots=True)
class UplinkHealth:
    name: str
    rows: Mapping[str, int]
    """Days by state."""
    oldest: date | None
    """Oldest day that is not confirmed."""
    trouble: str
    remedy: str
    token_until: datetime | None
    """When a token ends that does not renew itself; known only to the running daemon."""
    aside: int = 0
    """Days among the rejected ones that are set aside and need nobody any more."""
    waits: tuple[Blocked, ...] = ()
    """Where order is the rule: devices that wait for a decision about one day."""
    notes: tuple[str, ...] = ()
    """What else there is to know about the platform and the devices there; only from the running daemon."""
    needs: tuple[str, ...] = ()
    """The same where somebody has to do something; days under an old name also from the store alone."""
    stuck: tuple[str, ...] = ()
    """Meters with days that have come to no end for more than a day, in words."""
    verdicts: Mapping[str, int] = field(default_factory=dict)
    """What answers made of days since the start of the daemon, by the state they led to: one for each send of a day,
    and for each change after it."""

    @property
    def stopped(self) -> int:
        """Days that the platform has not taken, or that wait for a decision: nothing more happens by itself."""
        return self.rows.get("rejected", 0) + self.rows.get("held", 0) - self.aside

    @property
    def backlog(self) -> int:
        """Days that are neither confirmed nor set aside, `stopped` among them."""
        return sum(number for state, number in self.rows.items() if state != "confirmed") - self.aside


@dataclass(frozen=True, slots=True)
class OutputHealth:
    """Best effort: trouble with an output is shown, and is no alarm."""

    name: str
    where: str
    """Its peer, or where it listens; without credentials."""
    up: bool
    """Connected, or listening."""
    since: datetime | None
    """Since when it is up or down; None before the first try."""
    trouble: str = ""
    """Why it is down, with the next step; '' when all is well."""
    left_out: int = 0
    """Messages since the start that had to make room for newer ones; what a dead band leaves out does not count."""


@dataclass(frozen=True, slots=True)
class MachineHealth:
    """What the computer says about itself; None where it does not."""

    disk_size_bytes: int | None = None
    """Of the file system that data_dir stands on."""
    disk_free_bytes: int | None = None
    """What of that the service may still use."""
    written_bytes: int | None = None
    """Handed to block devices by the daemon since its start; known only to itself."""
    clock_ahead_s: Mapping[str, float] = field(default_factory=dict)
    """By how many seconds our clock is ahead, by whose word: "kernel", or an uplink's platform (half a second either
    way); who said nothing lately is not listed."""


@dataclass(frozen=True, slots=True)
class ProofHealth:
    """The hash chain. Whoever keeps key and checkpoint elsewhere can tell later that nothing before it was changed."""

    entries: int
    key: str
    """Public key of the device (Ed25519, hex); '' before the first checkpoint."""
    fingerprint: str
    checkpoint: int
    """Entry up to which everything is signed."""
    checkpoint_at: datetime | None
    hash: str
    """Of that entry, in hex."""
    signature: str


@dataclass(frozen=True, slots=True)
class Health:
    site: str
    timezone: str
    software: str
    at: datetime
    running: bool
    clock_trusted: bool
    meters: tuple[MeterHealth, ...]
    uplinks: tuple[UplinkHealth, ...]
    held: int
    missing: int
    proof: ProofHealth
    buses: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    outputs: tuple[OutputHealth, ...] = ()
    """Where readings are shown to others; known only to the running daemon."""
    storage: str = ""
    """Why nothing is stored now, or why less; '' when all is well."""
    alarms: tuple[str, ...] = ()
    """What needs attention, in words, with the next step."""
    machine: MachineHealth = MachineHealth()


def as_json(health: Health) -> dict[str, Any]:
    """The fields are a promise: scripts read them."""

    def plain(value: Any) -> Any:
        match value:
            case dict():
                return {key: plain(inner) for key, inner in value.items()}
            case list() | tuple():
                return [plain(inner) for inner in value]
            case datetime():
                return value.isoformat().replace("+00:00", "Z")
            case date():
                return value.isoformat()
            case _:
                return value

    return {key: plain(value) for key, value in asdict(health).items()}
