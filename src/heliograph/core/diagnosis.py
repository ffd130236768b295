"""Why a line does not work: from what was observed to what has to be put right first.

`work/diagnose.py` makes the observations; here is only what follows from them. Each rule says which observations
speak for a cause and which speak against it, so that a fault is not named where another one explains the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

from heliograph.core.line import Line, Parity
from heliograph.core.physics import relations
from heliograph.core.quantity import find
from heliograph.core.registers import MeterMap, Order, Timing

Outcome = Literal["answered", "refused", "nobody", "silent", "garbled", "echoed", "closed", "unreachable"]
"""`nobody`: a gateway says that nothing answers behind it. `closed`: the other side ended the connection."""

Why = Literal["", "busy", "forbidden", "refused"]
"""Why a port or host could not be opened, where the system's error tells."""

Code = Literal[
    "no-port", "no-permission", "in-use", "gateway", "refused", "unreachable", "another-client", "another-master",
    "echo", "no-echo", "baud", "parity", "wrong-unit", "silent-unit", "silence", "garbage", "noise", "slow",
    "wrong-map", "wrong-order", "night", "another-name", "disagreeing", "latency-timer", "name-changes", "ok",
]  # fmt: skip

ALIVE: frozenset[Outcome] = frozenset({"answered", "refused"})
NOBODY_BEHIND = frozenset({10, 11})
"""Exceptions by which a gateway says that the unit does not answer (application protocol 1.1b3, section 7)."""

# Wald's sequential test between a healthy line and a noisy one: few reads where it is clear, more where it is not.
HEALTHY_SHARE = 0.01
NOISY_SHARE = 0.06
_SAY_NOISY = math.log((1 - 1e-3) / 1e-4)
_SAY_HEALTHY = math.log(1e-3 / (1 - 1e-4))

LATE_SHARE = 0.02
"""Share of answers behind the time-out from which a device counts as too slow."""
ROOM = 1.25
"""A time-out is good that leaves a quarter more than all but one in twenty answers take."""
LATENCY_MS = 2
"""An FTDI chip hands over after 16 ms as it comes; from 1 ms on nothing is gained."""


@dataclass(frozen=True, slots=True)
class Try:
    """One question, without repeats, and what came of it."""

    unit: int
    count: int
    outcome: Outcome
    after: float | None = None
    """Seconds from the end of the request to the first byte of the answer, where one came."""
    code: int = 0
    """Of a refusal."""
    said: str = ""
    """What the bus said about it."""
    why: Why = ""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has the port open."""

    pid: int
    name: str
    """Its command line, without the folders."""

    @property
    def gateway(self) -> bool:
        """Whether it is `heliograph run`; other verbs open a port too, and end by themselves or by Ctrl-C."""
        words = self.name.split()
        if "heliograph" not in words:
            return False
        after = words[words.index("heliograph") + 1 :]
        while after and after[0].startswith("-") and after[0] != "run":
            after = after[1 if "=" in after[0] or after[1:2] == ["run"] else 2 :]
        return after[:1] == ["run"]


@dataclass(frozen=True, slots=True)
class Port:
    """A serial port as the system shows it."""

    path: str
    exists: bool
    by_id: str | None = None
    """The name of this port that stays when adapters are plugged in another order."""
    others: tuple[str, ...] = ()
    """Ports that are there."""
    allowed: bool = True
    group: str = ""
    """That owns the port."""
    user: str = ""
    holders: tuple[Holder, ...] = ()
    latency_ms: int | None = None
    latency_file: str = ""


@dataclass(frozen=True, slots=True)
class Gateway:
    """The running gateway, by its own counters."""

    figures: Mapping[str, int]
    errors: tuple[str, ...]
    """Of the meters on this line, as it tells them."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A register that tells the kind of a device, and what was found there (None: no such register)."""

    address: int
    seen: int | str | None
    wanted: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Content:
    """The values of a device under one byte order."""

    values: Mapping[str, int | float | str]
    absent: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Device:
    """What a unit says of itself: the map it names, else those that nothing speaks against."""

    unit: int
    map: str | None
    perhaps: tuple[str, ...] = ()
    told: str = ""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A question with other settings of the port."""

    line: Line
    tried: Try


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """All that was looked at. What was not looked at is empty, and nothing is concluded from it."""

    url: str
    line: Line
    unit: int
    timing: Timing
    map: MeterMap | None = None
    rated_kw: float | None = None
    port: Port | None = None
    gateway: Gateway | None = None
    heard: tuple[bytes, ...] = ()
    """What was said while nobody of us asked, by its silences."""
    listened: float = 0.0
    """Seconds of that."""
    knocks: tuple[Try, ...] = ()
    """First questions, with more patience each."""
    echo_off: tuple[Try, ...] = ()
    """The same with the other value of `echo` in the url."""
    elsewhere: tuple[Elsewhere, ...] = ()
    units: tuple[Try, ...] = ()
    """Questions to other units."""
    neighbours: tuple[int, ...] = ()
    """Units that the site has on this line as well."""
    series: tuple[Try, ...] = ()
    """Many questions in a row, of different lengths."""
    foreign: tuple[bytes, ...] = ()
    """Sound requests that were heard and are not ours."""
    marks: tuple[Mark, ...] = ()
    devices: tuple[Device, ...] = ()
    """Who answers, at this unit or another one, where that was in question."""
    dark: bool = False
    """The sun is down at the site."""
    contents: Mapping[Order, Content] = field(default_factory=dict)
    blocks: int = 0
    """Requests that the map's registers take."""
    refused: tuple[str, ...] = ()
    """Those that the device refused, also in parts."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause. `advice`: nothing is broken by it, but it will save trouble."""

    code: Code
    sentence: str
    next: str
    evidence: Mapping[str, object] = field(default_factory=dict)
    advice: bool = False


def diagnose(o: Observations) -> tuple[Finding, ...]:
    """What was found, in the order in which to put it right; never empty."""
    stopped = list(_port(o))
    if stopped:
        return (*stopped, *_advice(o))
    found: list[Finding] = []
    if alive(o):
        found += _echo(o)
        found += _others(o)
        if not found:
            found += _spoilt(o) or list(_noise(o))
        found += _slow(o)
        found += _map(o)
        if not any(one.code == "wrong-map" for one in found):
            found += _order(o)
    else:
        found += _unreachable(o) or _dumb(o)
    advice = list(_advice(o))
    if not found:
        found.append(_all_right(o))
    return (*found, *advice)


def alive(o: Observations) -> bool:
    """Whether the unit answered with the settings that the url names, echo aside."""
    return any(one.outcome in ALIVE for one in (*o.knocks, *o.echo_off, *o.series))


# The port -------------------------------------------------------------------------------------------------------


def _port(o: Observations) -> Iterator[Finding]:
    port = o.port
    if o.gateway is not None:
        yield _gateway(o.gateway)
        return
    if port is None:
        return
    if not port.exists:
        there = f"; there {'is' if len(port.others) == 1 else 'are'} {', '.join(port.others)}" if port.others else ""
        yield Finding(
            "no-port",
            f"There is no port {port.path}{there or '; no serial adapter is plugged in at all'}.",
            f'Put url = "{with_(o.line, at=port.others[0])}" into the [[bus]].'
            if len(port.others) == 1
            else "Put the adapter's name in the [[bus]] url, if it is one of these."
            if port.others
            else "Plug the adapter in, then run this again; `dmesg` shows whether the system sees it.",
            {"there": list(port.others)},
        )
    elif not port.allowed:
        yield Finding(
            "no-permission",
            f"{port.user} may not use {port.path}: it belongs to the group {port.group}.",
            f"Run: sudo usermod -a -G {port.group} {port.user}, then log in again (a service: restart it).",
            {"user": port.user, "group": port.group},
        )
    elif port.holders:
        names = ", ".join(f"{one.name} (process {one.pid})" for one in port.holders)
        yield Finding(
            "in-use",
            f"{port.path} is in use by {names}.",
            "Let the gateway go of it: systemctl stop heliograph, then run this again."
            if port.holders[0].gateway
            else f"Stop it (kill {port.holders[0].pid}, or systemctl stop its service), then run this again.",
            {"processes": [{"pid": one.pid, "name": one.name} for one in port.holders]},
        )


def _gateway(gateway: Gateway) -> Finding:
    f = gateway.figures
    asked, answered = f.get("requests", 0), f.get("answers", 0)
    lost = ", ".join(
        f"{f[key]} {word}"
        for key, word in (("timeouts", "without an answer"), ("garbled", "damaged"), ("refused", "refused"))
        if f.get(key)
    )
    told = f"{asked} questions, {answered} answered" + (f", {lost}" if lost else "")
    ill = gateway.errors or (asked and (f.get("timeouts", 0) + f.get("garbled", 0)) / asked > NOISY_SHARE)
    if not ill:
        return Finding(
            "ok", f"The gateway itself reads this line, and it is all right: {told}.", "", dict(f), advice=True
        )
    return Finding(
        "gateway",
        f"The gateway itself has this line, and its own counters say: {told}"
        f"{'; ' + '; '.join(gateway.errors) if gateway.errors else ''}.",
        "To look closer, let go of the line first: systemctl stop heliograph, then run this again.",
        dict(f),
    )


def _unreachable(o: Observations) -> list[Finding]:
    """The port or the connection cannot be opened, or it is ended at once."""
    if not o.knocks:
        return []
    if o.line.way == "serial":
        last = o.knocks[-1]
        return [] if last.outcome != "unreachable" else [_unopened(o, last)]
    outcomes = {one.outcome for one in o.knocks}
    told = o.knocks[-1].said
    if outcomes == {"unreachable"}:
        if o.knocks[-1].why == "refused":
            return [
                Finding(
                    "refused",
                    f"{o.line} is there, but takes no connection: Modbus TCP is off, on another port, or busy with"
                    " another client.",
                    "Switch Modbus TCP on in the device and compare the port; then stop other readers of it.",
                    {"said": told},
                )
            ]
        return [
            Finding(
                "unreachable",
                f"{o.line} cannot be reached: {told}.",
                "Compare the address with the device's display or the router's list; is its network cable in?",
                {"said": told},
            )
        ]
    if "closed" in outcomes:
        return [
            Finding(
                "another-client",
                f"{o.line} ends each connection before it answers: it serves one client, and somebody else is"
                " connected.",
                "Stop the other reader (portal logger, wallbox, home automation), or read the device through it.",
                {"closed": sum(one.outcome == "closed" for one in o.knocks), "asked": len(o.knocks)},
            )
        ]
    return []


def _unopened(o: Observations, tried: Try) -> Finding:
    user, group = (o.port.user, o.port.group) if o.port is not None else ("this user", "dialout")
    if tried.why == "busy":
        return Finding(
            "in-use",
            f"{o.line.at} is in use by another program, which {user} may not see.",
            "Run this with sudo to see which; if it is the gateway: systemctl stop heliograph.",
            {"said": tried.said},
        )
    if tried.why == "forbidden":
        return Finding(
            "no-permission",
            f"{user} may not open {o.line.at}.",
            f"Run: sudo usermod -a -G {group} {user}, then log in again (a service: restart it).",
            {"said": tried.said},
        )
    return Finding(
        "unreachable",
        f"The port does not work: {tried.said}.",
        "Unplug the adapter and plug it in again; look at its cable and at: dmesg",
        {"said": tried.said},
    )


# Nothing usable came ----------------------------------------------------------------------------------------------


def _dumb(o: Observations) -> list[Finding]:
    found: list[Finding] = []
    found += _others(o)
    found += _echo(o)
    right = next((one for one in o.elsewhere if one.tried.outcome in ALIVE), None)
    if right is not None:
        found.append(_settings(o, right))
        if right.tried.unit != o.unit:
            found.append(_unit(o, [right.tried]))
        return found
    there = [one for one in o.units if one.outcome in ALIVE]
    if strangers := [one for one in there if one.unit not in o.neighbours]:
        found.append(_unit(o, strangers))
        return found
    if there:
        found.append(_alone(o, there))
        return found
    if any(one.code == "another-master" for one in found):
        return found
    if o.line.way == "tcp" and any(one.outcome == "nobody" for one in o.knocks):
        found.append(
            Finding(
                "silence",
                f"The converter at {o.line} answers, but nothing behind it does, at no unit id that was tried.",
                "Check A/B, power and the serial settings behind the converter.",
                _asked(o),
            )
        )
    elif o.map is not None and o.map.night == "silent" and o.dark:
        found.append(
            Finding(
                "night",
                f"Nothing answers, and the sun is down: a {o.map.name} is silent between sunset and sunrise.",
                "Run this again by daylight.",
                _asked(o),
            )
        )
    elif o.line.way == "tcp":
        found.append(
            Finding(
                "another-client",
                f"{o.line} takes the connection and answers nothing, at no unit id: it serves one client, and somebody"
                " else is connected, or nothing is behind it.",
                "Stop the other reader (portal logger, wallbox, home automation), or switch the device off and on.",
                _asked(o),
            )
        )
    elif any(one.outcome == "garbled" for one in o.knocks):
        found.append(
            Finding(
                "garbage",
                "Something is heard after each question, but it is no answer at any usual speed or parity.",
                "Is a device of another protocol on the line? Check A/B, ground and termination; disconnect all"
                " devices but one.",
                _asked(o),
            )
        )
    else:
        where = " behind the converter" if o.line.way != "serial" else ""
        found.append(
            Finding(
                "silence",
                f"The line{where} is dead silent at every setting and unit id that was tried: A and B are swapped, a"
                " wire is off, or the meter has no power.",
                ("This device is silent by night; by day: " if o.map is not None and o.map.night == "silent" else "")
                + "Is the meter's display lit? Then swap A and B at one end, and run this again; after that check the"
                " two ends for termination (120 ohm).",
                _asked(o),
            )
        )
    return found


def _asked(o: Observations) -> dict[str, object]:
    settings = sorted({f"{one.line.baudrate} {one.line.parity}" for one in o.elsewhere})
    return {
        "asked": len(o.knocks),
        "units": len({one.unit for one in o.units}),
        "settings": settings,
    }


def _settings(o: Observations, right: Elsewhere) -> Finding:
    told = f"{right.line.baudrate} baud, {PARITIES[right.line.parity]}"
    ours = f"{o.line.baudrate} baud, {PARITIES[o.line.parity]}"
    same = right.line.baudrate == o.line.baudrate
    return Finding(
        "parity" if same else "baud",
        f"Unit {right.tried.unit} answers at {told}, not at {ours}.",
        f'Put url = "{with_(right.line)}" into the [[bus]].',
        {"baudrate": right.line.baudrate, "parity": right.line.parity, "url": with_(right.line)},
    )


def _unit(o: Observations, there: Sequence[Try]) -> Finding:
    units = sorted({one.unit for one in there})
    known = {one.unit: one for one in o.devices}
    ours = o.map.name if o.map is not None else ""
    right = [unit for unit in units if ours and unit in known and known[unit].map == ours] or units
    names = {
        unit: f"unit {unit}" + (f" ({known[unit].map})" if unit in known and known[unit].map else "") for unit in units
    }
    told = f"{names[units[0]]} does" if len(units) == 1 else f"{', '.join(names.values())} do"
    return Finding(
        "wrong-unit",
        f"Unit {o.unit} does not answer, but {told}.",
        f"Put unit = {right[0]} into the [[meter]]."
        if len(right) == 1
        else "Put the right one into the [[meter]] as unit; `heliograph scan` tells what each of them is.",
        {"units": units, "devices": {str(unit): known[unit].told for unit in units if unit in known}},
    )


def _alone(o: Observations, there: Sequence[Try]) -> Finding:
    units = sorted({one.unit for one in there})
    others = f"unit {units[0]} answers" if len(units) == 1 else f"units {', '.join(map(str, units))} answer"
    return Finding(
        "silent-unit",
        f"Unit {o.unit} is silent, but the line works, for {others}: this meter has no power, its own A and B are"
        " swapped or off, or its unit id or speed is set differently.",
        "Look at this meter's display: is it lit, and which address and baud rate does its menu show?",
        {"units": units, **_asked(o)},
    )


PARITIES: dict[Parity, str] = {"N": "no parity", "E": "even parity", "O": "odd parity"}


def with_(line: Line, *, at: str | None = None, echo: bool | None = None) -> str:
    """The url of a line, with another place or echo."""
    line = replace(line, at=line.at if at is None else at, echo=line.echo if echo is None else echo)
    options = []
    if line.way == "serial":
        options = [f"baudrate={line.baudrate}", f"parity={line.parity}", f"stopbits={line.stopbits}"]
        place = line.at
    else:
        place = f"[{line.at}]:{line.port}" if ":" in line.at else f"{line.at}:{line.port}"
    if line.echo:
        options.append("echo=1")
    return f"{line.way}://{place}{'?' if options else ''}{'&'.join(options)}"


# Somebody answers -------------------------------------------------------------------------------------------------


def _echo(o: Observations) -> Iterator[Finding]:
    if o.line.echo:
        if any(one.outcome in ALIVE for one in o.echo_off) and not any(one.outcome in ALIVE for one in o.knocks):
            yield Finding(
                "no-echo",
                "The url announces an echo (echo=1), but the adapter does not hear itself.",
                f'Put url = "{with_(o.line, echo=False)}" into the [[bus]].',
                {"url": with_(o.line, echo=False)},
            )
        return
    echoed = sum(one.outcome == "echoed" for one in o.knocks)
    if echoed:
        yield Finding(
            "echo",
            "The adapter hears itself: each question comes back before the answer.",
            f'Put url = "{with_(o.line, echo=True)}" into the [[bus]], or switch the adapter\'s local echo off.',
            {"echoed": echoed, "asked": len(o.knocks), "url": with_(o.line, echo=True)},
        )


def _others(o: Observations) -> Iterator[Finding]:
    """A request that is not ours can only come from another master."""
    asked = sorted({frame[0] for frame in o.foreign})
    if o.foreign:
        units = f"unit{'s' if len(asked) > 1 else ''} {', '.join(map(str, asked))}"
        count = "1 question" if len(o.foreign) == 1 else f"{len(o.foreign)} questions"
        was = "was heard that is" if len(o.foreign) == 1 else "were heard that are"
        yield Finding(
            "another-master",
            f"Somebody else asks on this line: {count} to {units} {was} not ours.",
            "Disconnect the other master (logger, wallbox, second gateway), or read through it: a line has one.",
            {"questions": len(o.foreign), "units": asked, "first": o.foreign[0].hex(" "), "listened_s": o.listened},
        )
        return
    closed = sum(one.outcome == "closed" for one in o.series)
    if o.line.way != "serial" and closed >= 2:
        yield Finding(
            "another-client",
            f"{o.line} ended the connection {closed} times in {len(o.series)} questions: it serves one client, and"
            " somebody else takes it over.",
            "Stop the other reader (portal logger, wallbox, home automation), or read the device through it.",
            {"closed": closed, "asked": len(o.series)},
        )


def bad(tries: Sequence[Try]) -> int:
    return sum(one.outcome not in ALIVE for one in tries)


def noisy(tries: Sequence[Try]) -> bool | None:
    """Whether the line is noisy: None while too few questions were asked to tell (sequential test, errors 1e-4)."""
    errors = bad(tries)
    score = errors * math.log(NOISY_SHARE / HEALTHY_SHARE) + (len(tries) - errors) * math.log(
        (1 - NOISY_SHARE) / (1 - HEALTHY_SHARE)
    )
    return True if score >= _SAY_NOISY else False if score <= _SAY_HEALTHY else None


def _spoilt(o: Observations) -> list[Finding]:
    """Another parity loses nothing where ours loses much: single answers get through by chance."""
    for line in dict.fromkeys(one.line for one in o.elsewhere):
        tries = [one for one in o.elsewhere if one.line == line]
        if len(tries) > 1 and all(one.tried.outcome in ALIVE for one in tries) and noisy(o.series) is True:
            return [_settings(o, tries[0])]
    return []


def _noise(o: Observations) -> Iterator[Finding]:
    if not o.series or noisy(o.series) is not True:
        return
    errors, asked = bad(o.series), len(o.series)
    silent = sum(one.outcome == "silent" for one in o.series)
    share = round(100 * errors / asked)
    lengths = {
        count: (bad(same), len(same))
        for count in sorted({one.count for one in o.series})
        if (same := [one for one in o.series if one.count == count])
    }
    worst = max(lengths, key=lambda count: lengths[count][0] / lengths[count][1])
    what = "get no answer" if silent > errors / 2 else "come back damaged"
    yield Finding(
        "noise",
        f"{share} % of the questions {what} ({errors} of {asked}), those for {worst} registers most.",
        "Check that A and B are a twisted pair, the shield on one end, 120 ohm at both ends and nowhere else, and the"
        " cable away from the inverter's; a lower baud rate helps long lines.",
        {
            "errors": errors,
            "asked": asked,
            "share": errors / asked,
            "lengths": {str(count): {"errors": e, "asked": n} for count, (e, n) in lengths.items()},
        },
    )


def answer_times(o: Observations) -> tuple[float, ...]:
    """Seconds, sorted."""
    tries = o.series or (*o.knocks, *o.echo_off)
    return tuple(sorted(one.after for one in tries if one.outcome in ALIVE and one.after is not None))


def percentile(times: Sequence[float], share: float) -> float:
    """Of sorted times: the one that `share` of them do not exceed."""
    return times[min(len(times) - 1, max(0, math.ceil(share * len(times)) - 1))]


def histogram(times: Sequence[float]) -> tuple[tuple[float, float, int], ...]:
    """Least and most of each class in seconds, and how many answers fall into it; classes double in width."""
    edges = [0.0]
    step = 0.01
    while edges[-1] <= times[-1]:
        edges.append(step)
        step *= 2
    found = [(low, high, sum(low <= one < high for one in times)) for low, high in pairwise(edges)]
    while found and not found[0][2]:
        del found[0]
    return tuple(found)


def good_timeout(times: Sequence[float]) -> float:
    """Half as long again as the slowest answer, in round figures of 100 ms."""
    return max(0.1, math.ceil(times[-1] * 15) / 10)


def _slow(o: Observations) -> Iterator[Finding]:
    times = answer_times(o)
    if not times:
        return
    timeout = o.timing.timeout
    late = sum(one > timeout for one in times)
    if late <= LATE_SHARE * len(times) and percentile(times, 0.95) * ROOM <= timeout:
        return
    good = good_timeout(times)
    yield Finding(
        "slow",
        f"The device takes {ms(percentile(times, 0.5))} to answer, at worst {ms(times[-1])}: the time-out of"
        f" {ms(timeout)} is too short for {late} of {len(times)} answers."
        if late
        else f"The device takes up to {ms(times[-1])} to answer, close to the time-out of {ms(timeout)}.",
        f'Put timeout = "{shown_timeout(good)}" into the [[bus]].',
        {
            "timeout_s": timeout,
            "late": late,
            "answers": len(times),
            "p50_s": percentile(times, 0.5),
            "p95_s": percentile(times, 0.95),
            "slowest_s": times[-1],
            "proposed_s": good,
        },
    )


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def shown_timeout(seconds: float) -> str:
    """As it stands in a configuration."""
    return f"{seconds * 1000:.0f}ms" if seconds < 1 else f"{seconds:g}s"


# What it says -----------------------------------------------------------------------------------------------------


def _map(o: Observations) -> Iterator[Finding]:
    if o.map is None:
        return
    identity = o.map.identity
    wrong = [
        mark
        for mark in o.marks
        if (mark.seen is None and identity.required)
        or (mark.seen is not None and mark.seen not in mark.wanted and _bytes_turned(mark.seen) not in mark.wanted)
    ]
    device = next((one for one in o.devices if one.unit == o.unit), None)
    fits = [name for name in (device.perhaps if device else ()) if name != o.map.name]
    if device is not None and device.map not in (None, o.map.name):
        next_ = f'Put map = "{device.map}" into the [[meter]]: that is what the device says it is.'
    elif fits:
        next_ = (
            f"Compare the label on the device; nothing it says of itself speaks against {' or '.join(fits[:4])}:"
            " put that into the [[meter]] as map."
        )
    else:
        next_ = "Compare the label on the device with: heliograph map list"
    if wrong:
        mark = wrong[0]
        told = "has no register" if mark.seen is None else f"holds {mark.seen} in"
        wanted = " or ".join(str(one) for one in mark.wanted)
        yield Finding(
            "wrong-map",
            f"Unit {o.unit} is no {o.map.name}: it {told} 0x{mark.address:04X}, where that has {wanted}.",
            next_,
            {"register": mark.address, "seen": mark.seen, "wanted": list(mark.wanted), **_says(device)},
        )
        return
    if o.blocks and len(o.refused) * 2 >= o.blocks:
        yield Finding(
            "wrong-map",
            f"Unit {o.unit} is no {o.map.name}: it refuses {len(o.refused)} of the {o.blocks} requests of that map"
            f" ({o.refused[0]}).",
            next_,
            {"refused": list(o.refused), "requests": o.blocks, **_says(device)},
        )
        return
    asleep = o.map.order in o.contents and _asleep(o.map, o.contents[o.map.order])
    if o.contents and not asleep and not any(_possible(o, content)[0] for content in o.contents.values()):
        reasons = _possible(o, o.contents[o.map.order])[1]
        if reasons:
            yield Finding(
                "wrong-map",
                f"Unit {o.unit} answers, but what it says makes no sense as {o.map.name}: {reasons[0]}.",
                next_,
                {"impossible": list(reasons), **_says(device)},
            )


def _says(device: Device | None) -> dict[str, object]:
    return {} if device is None else {"map": device.map, "perhaps": list(device.perhaps), "told": device.told}


def doubtful(o: Observations, *, by_name: bool = True) -> bool:
    """Whether it is in question what device this is, so that it is worth asking all that maps know devices by.

    `by_name`: also where nothing speaks against the map but that no mark of the device speaks for it.
    """
    unnamed = by_name and not any(mark.seen is not None for mark in o.marks)
    return o.map is None or unnamed or any(_map(o))


def _bytes_turned(seen: int | str) -> int | None:
    """A register whose bytes come in the other order is the right one all the same."""
    return (seen >> 8) | (seen & 0xFF) << 8 if isinstance(seen, int) and 0 <= seen <= 0xFFFF else None


def _order(o: Observations) -> Iterator[Finding]:
    if o.map is None or o.map.order not in o.contents or _asleep(o.map, o.contents[o.map.order]):
        return
    _, against = _possible(o, o.contents[o.map.order])
    if not against:
        return
    better = [
        (order, agree)
        for order, content in o.contents.items()
        for agree, other in [_possible(o, content)]
        if order != o.map.order and agree and not other
    ]
    if not better:
        return
    order, agree = max(better, key=lambda one: len(one[1]))
    yield Finding(
        "wrong-order",
        f"The words of unit {o.unit} come in another order than {o.map.name} has it: read as {o.map.order},"
        f" {against[0]}; read as {order}, {agree[0]}.",
        f'Put order = "{order}" into the [[meter]].',
        {"order": order, "impossible": list(against), "plausible": list(agree)},
    )


LIFE_H = 8760 * 40
"""Hours in which a device has counted at most."""
LEAST = 1e-20
"""A float32 that is smaller is nobody's measurement: its words are in the wrong order."""


def _possible(o: Observations, content: Content) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What in these values fits the mains, and what no site can show, under any wiring."""
    numbers = {name: one for name, one in content.values.items() if not isinstance(one, str)}
    agree: list[str] = []
    against = [why for why in content.absent.values() if "plausible" in why or "outside" in why]
    for relation in relations(numbers):
        if relation.holds:
            agree.append(relation.text)
        elif len(relation.quantities) == 1:  # of several, the wiring or a transformer may be to blame
            against.append(relation.text)
    for name, number in numbers.items():
        unit = found.unit if (found := find(name)) is not None else ""
        most = {"W": 5000.0, "Wh": 1000.0 * LIFE_H}.get(unit, math.inf) * (o.rated_kw or math.inf)
        if 0 < abs(number) < LEAST or abs(number) > most:
            against.append(f"{name} is {number:.6g} {unit}".rstrip())
    by_frequency = sorted(against, key=lambda text: "frequency" not in text)
    return tuple(agree), tuple(by_frequency)


def _asleep(map: MeterMap, content: Content) -> bool:
    """An inverter that shows zeros at night tells nothing by them."""
    return map.night == "zeros" and not any(
        value
        for name, value in content.values.items()
        if (quantity := find(name)) is not None and quantity.kind == "instant" and not isinstance(value, str)
    )


# Advice -----------------------------------------------------------------------------------------------------------


def _advice(o: Observations) -> Iterator[Finding]:
    yield from _disagreeing(o)
    port = o.port
    if port is None or not port.exists:
        return
    if port.latency_ms is not None and port.latency_ms > LATENCY_MS:
        yield Finding(
            "latency-timer",
            f"The USB adapter keeps each answer back for up to {port.latency_ms} ms.",
            f"Run: echo 1 | sudo tee {port.latency_file} (and as a udev rule, so that it stays:"
            ' ACTION=="add", SUBSYSTEM=="usb-serial", DRIVER=="ftdi_sio", ATTR{latency_timer}="1").',
            {"latency_ms": port.latency_ms},
            advice=True,
        )
    if port.by_id is not None and port.path != port.by_id:
        yield Finding(
            "name-changes",
            f"{port.path} may become another adapter's name at the next start.",
            f'Put url = "{with_(o.line, at=port.by_id)}" into the [[bus]].',
            {"by_id": port.by_id, "url": with_(o.line, at=port.by_id)},
            advice=True,
        )


def _disagreeing(o: Observations) -> Iterator[Finding]:
    """The line works and the map fits, but the device's name or two of its numbers speak against it."""
    content = o.contents.get(o.map.order) if o.map is not None else None
    if o.map is None or content is None or any(_map(o)) or any(_order(o)):
        return
    device = next((one for one in o.devices if one.unit == o.unit), None)
    if device is not None and device.map is not None and device.map != o.map.name and not o.map.identity.match:
        yield Finding(
            "another-name",
            f"The values fit {o.map.name}, which knows no mark of its devices; this one says it is of {device.map}.",
            f'Compare the label on the device; if it agrees, put map = "{device.map}" into the [[meter]].',
            _says(device),
            advice=True,
        )
    numbers = {name: one for name, one in content.values.items() if not isinstance(one, str)}
    wrong = [one.text for one in relations(numbers) if not one.holds]
    if wrong:
        yield Finding(
            "disagreeing",
            f"The line works, but the numbers contradict each other: {wrong[0]}.",
            "Look at the wiring of voltages and current transformers; `heliograph commission` goes through it.",
            {"relations": wrong},
            advice=True,
        )


def _all_right(o: Observations) -> Finding:
    times = answer_times(o)
    told = f" within {ms(times[-1])}" if times else ""
    asked = len(o.series)
    lost = bad(o.series)
    share = f", {lost} of {asked} questions lost" if lost else f", {asked} of {asked} times" if asked else ""
    what = f", and its values fit {o.map.name}" if o.map is not None and o.contents else ""
    return Finding(
        "ok",
        f"All right: unit {o.unit} answers{told}{share}{what}.",
        "",
        {"asked": asked, "lost": lost},
        advice=True,
    )


# Frames -----------------------------------------------------------------------------------------------------------


def crc(data: bytes) -> bytes:
    """The checksum of an RTU frame, low byte first (Modbus over serial line 1.02, 6.2.2)."""
    value = 0xFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ 0xA001 if value & 1 else value >> 1
    return value.to_bytes(2, "little")


def requests_in(data: bytes) -> tuple[bytes, ...]:
    """Sound requests to read (or to write one register) that lie in these bytes; answers are passed over."""
    found = []
    at = 0
    while at + 5 <= len(data):
        answer = data[at : at + (5 + data[at + 2] if data[at + 1] in (1, 2, 3, 4) else 5)]
        asked = data[at : at + 8]
        if len(answer) >= 5 and (len(answer) == 5 + answer[2] or answer[1] & 0x80) and _sound(answer):
            at += len(answer)
        elif len(asked) == 8 and _may_be_asked(asked) and _sound(asked):
            found.append(asked)
            at += 8
        else:
            at += 1
    return tuple(found)


def _sound(frame: bytes) -> bool:
    return crc(frame[:-2]) == frame[-2:]


def _may_be_asked(frame: bytes) -> bool:
    """So that bytes within a damaged answer hardly ever pass for a question."""
    most = {1: 2000, 2: 2000, 3: 125, 4: 125, 5: 0xFF00, 6: 0xFFFF}.get(frame[1], -1)
    return 0 < frame[0] <= 247 and int.from_bytes(frame[4:6], "big") <= most


def usual_settings(line: Line) -> tuple[Line, ...]:
    """Other speeds and parities of a serial line, the usual ones first."""
    if line.way != "serial":
        return ()
    found: list[Line] = []
    parities: tuple[Parity, ...] = (line.parity, "N", "E", "O")
    for parity in parities:
        for baudrate in (line.baudrate, 9600, 19200, 38400, 2400, 4800, 115200, 57600, 1200):
            other = replace(line, baudrate=baudrate, parity=parity)
            if other != line and other not in found:
                found.append(other)
    return tuple(sorted(found, key=lambda one: (one.parity == "O", one.baudrate not in (line.baudrate, 9600, 19200))))
