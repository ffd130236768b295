"""Modbus reads in which an answer belongs to its question; the only module that knows pymodbus.

pymodbus gives the frames and PDUs. Its clients are not used: on RTU they hand an answer that comes 10 to 50 ms
after the time-out to the next request (3.16.1, sync and async), for an RTU frame does not say what it answers.
So the exchange is ours. Per request:

1. drain what is in the input, and keep the silence: 3.5 characters, or the pause the device asks for;
2. write, and disbelieve bytes that arrive before the request can have left;
3. take exactly the expected frame from the expected unit, function and length; more bytes mean two talkers;
4. after silence or garbage, listen until nothing came for another time-out. An answer that is still owed is
   remembered by its shape (unit, function, length): until FENCE time-outs after its request, no question of that
   shape is asked, and until OWED seconds, an answer of that shape counts only if it is the only one that came.

Questions of another shape need not wait: their answers cannot be mistaken. The planner gives the blocks of a
device different lengths for this reason.

An echo is never cut off silently, for it may also be a device or a second line that answers with our own words:
it is reported as what it is, and where the adapter is known to hear itself, `echo=1` in the bus' URL expects it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pymodbus.framer.rtu import FramerRTU
from pymodbus.framer.socket import FramerSocket
from pymodbus.pdu.decoders import DecodePDU
from pymodbus.pdu.pdu import ModbusPDU
from pymodbus.pdu.register_message import ReadHoldingRegistersRequest, ReadInputRegistersRequest

from heliograph.bus.trace import TracedWire
from heliograph.bus.wire import Wire, real_wire
from heliograph.core.errors import BusError, BusGarbled, BusRefused, BusTimeout, BusUnreachable
from heliograph.core.line import Line, parse
from heliograph.core.registers import FUNCTION_CODES, Function, Timing
from heliograph.ports import Bus, BusCounters, Frame

# All that can be asked. A write cannot be put into bytes here.
REQUESTS: dict[int, type[ReadHoldingRegistersRequest]] = {
    ReadHoldingRegistersRequest.function_code: ReadHoldingRegistersRequest,
    ReadInputRegistersRequest.function_code: ReadInputRegistersRequest,
}
MOST_WORDS = 125
REQUEST_BYTES = 8
REFUSAL_BYTES = 5
CHUNK = 512
"""More than the longest frame (256 bytes)."""

STRICT_BITS = 11
"""Modbus over serial line 1.02, 2.5.1: a character of RTU has eleven bits, and silences are reckoned in those."""
SILENCE_ABOVE_19200 = 0.00175
SLACK = 0.05
"""Longest hole in a frame: an FTDI chip hands over every 16 ms, and the system may be busy."""
NETWORK_SLACK = 0.2
"""The same where frames come through a converter and a network."""
NETWORK_QUIET = 0.005
"""Silence around a frame where characters cannot be timed."""
FENCE = 4.0
"""In time-outs: answers come up to three time-outs after ours has passed."""
OWED = 60.0
"""Seconds after which nobody expects the answer any more."""
DISTURBED = 600.0
"""Seconds after anything strange was heard during which copies of answers are reckoned with."""
STRAY_ZEROS = 2
"""An RS485 line may show a 0x00 where it changes direction (seen with an SDM630, ESPHome PR 8032); no unit is 0."""

BUSY = 6
CODES = {
    1: ("illegal function", "The map's function does not fit this device: input or holding?"),
    2: ("illegal data address", "The device has no such register; is it the model of the map?"),
    3: ("illegal data value", "The device may not allow so many registers: try a smaller max_words in the map"),
    4: ("device failure", "The device reports a fault of its own; look at its display"),
    5: ("acknowledge", "The device needs time; try again"),
    6: ("busy", "The device is busy: poll it less often, or set a longer pause"),
    8: ("memory parity error", "The device reports a fault of its own; look at its display"),
    10: ("gateway path unavailable", "The gateway knows no way to this unit; check its settings"),
    11: ("no answer behind the gateway", "Check A/B, unit id and baud rate behind the gateway"),
}


@dataclass(frozen=True, slots=True)
class Question:
    unit: int
    function: Function
    address: int
    count: int

    def __post_init__(self) -> None:
        if FUNCTION_CODES.get(self.function) not in REQUESTS:
            raise ValueError(f"{self.function}: only holding and input registers can be read")
        if not (0 <= self.unit <= 255 and 1 <= self.count <= MOST_WORDS and 0 <= self.address <= 65536 - self.count):
            raise ValueError(f"unit {self.unit}, {self.address}+{self.count} cannot be asked for")

    @property
    def code(self) -> int:
        return FUNCTION_CODES[self.function]

    @property
    def header(self) -> bytes:
        """What an RTU answer begins with."""
        return bytes((self.unit, self.code, 2 * self.count))

    def pdu(self, transaction: int = 0) -> ModbusPDU:
        return REQUESTS[self.code](dev_id=self.unit, transaction_id=transaction, address=self.address, count=self.count)

    def __str__(self) -> str:
        return f"unit {self.unit}, {self.function} 0x{self.address:04X}+{self.count}"


class Exchange(Protocol):
    """One request and its answer on one kind of line."""

    def ask(self, question: Question, timing: Timing, fresh: bool) -> tuple[int, ...]:
        """`fresh`: the wire was opened just now."""
        ...


class ModbusBus:
    """A line with meters (port `Bus`). One request at a time; `close` may come from another thread."""

    def __init__(self, wire: Wire, exchange: Exchange, counters: BusCounters, *, numbered: bool = False) -> None:
        self.counters = counters
        self.numbered = numbered
        self._wire = wire
        self._exchange = exchange
        self._lock = threading.Lock()

    def read(self, unit: int, function: Function, address: int, count: int, timing: Timing) -> tuple[int, ...]:
        question = Question(unit, function, address, count)
        with self._lock:
            return self._ask(question, timing)

    def _ask(self, question: Question, timing: Timing) -> tuple[int, ...]:
        left = timing.retries
        busy = False
        while True:
            fresh = self._wire.open()  # what cannot be opened now cannot be opened at once again either
            try:
                return self._exchange.ask(question, timing, fresh)
            except BusRefused as refused:
                self.counters.refused += 1
                if refused.code != BUSY or busy:
                    raise
                busy = True
                self._wire.sleep(max(timing.pause, 0.1))
            except BusError:
                if left <= 0 or self._wire.stopping:
                    raise
                left -= 1

    def hear(self, seconds: float) -> tuple[Frame, ...]:
        with self._lock:
            self._wire.open()
            heard: list[Frame] = []
            until = self._wire.monotonic() + seconds
            while data := self._wire.read(CHUNK, until):
                heard.append(Frame(self._wire.monotonic(), False, data))
                if self._wire.monotonic() >= until:
                    break
            return tuple(heard)

    def close(self) -> None:
        """Lets go of the port; the next read opens it again."""
        self._wire.stopping = True
        with self._lock:
            self._wire.close()
            self._wire.stopping = False


def open_bus(url: str, *, wire: Callable[[Line], Wire] = real_wire) -> Bus:
    """The bus at that address. Nothing is opened before the first read, so a missing adapter stops nothing else."""
    line = parse(url)
    counters = BusCounters()
    ours = TracedWire(wire(line), counters.frames)
    exchange = TcpExchange(ours, counters) if line.way == "tcp" else RtuExchange(ours, counters, line)
    return ModbusBus(ours, exchange, counters, numbered=line.way == "tcp")


def _decoder() -> DecodePDU:
    """Knows the answers to our two questions and nothing else."""
    decoder = DecodePDU(is_server=False)
    decoder.pdu_table = {code: DecodePDU.pdu_table[code] for code in REQUESTS}
    return decoder


def _refusal(question: Question, code: int) -> BusRefused:
    name, hint = CODES.get(code, ("unknown code", "See the device's manual"))
    return BusRefused(f"{question} was refused: exception {code}, {name}", code=code, hint=hint)


def _registers(pdu: ModbusPDU | None, question: Question) -> tuple[int, ...] | None:
    """The words of a decoded answer; None where the checksum was wrong."""
    if pdu is None:
        return None
    if pdu.isError():
        raise _refusal(question, pdu.exception_code)
    return tuple(pdu.registers) if len(pdu.registers) == question.count else None


# RTU ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Owed:
    """An answer that did not come in time: no question of its shape until `fence`, caution until `over`."""

    fence: float
    over: float


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that was written, and when its last character left."""

    question: Question
    timing: Timing
    request: bytes
    left: float

    @property
    def deadline(self) -> float:
        return self.left + self.timing.timeout


Shape = tuple[int, int, int]
"""Unit, function and byte count: all that an RTU answer says about its question."""


class RtuExchange:
    """Modbus RTU on a serial line, or through a converter that hands RTU frames over TCP."""

    def __init__(self, wire: Wire, counters: BusCounters, line: Line) -> None:
        self._wire = wire
        self._counters = counters
        self._echo = line.echo
        self._framer = FramerRTU(_decoder())
        self._slack = SLACK if line.way == "serial" else NETWORK_SLACK
        if line.way != "serial":
            self._silence = NETWORK_QUIET
        elif line.baudrate > 19200:
            self._silence = SILENCE_ABOVE_19200
        else:
            self._silence = 3.5 * STRICT_BITS / line.baudrate
        self._hint = (
            "Check A/B, termination, unit id and baud rate, then run: heliograph doctor"
            if line.way == "serial"
            else "Check unit id and the converter's serial settings, then run: heliograph doctor"
        )
        self._last = -OWED
        """When a character was last on the line, ours or anybody's."""
        self._quiet_until = -OWED
        self._strange = -DISTURBED
        """When something was last heard, or not heard, that should not be so."""
        self._answered: dict[Shape, float] = {}
        self._owed: dict[Shape, _Owed] = {}

    def ask(self, question: Question, timing: Timing, fresh: bool) -> tuple[int, ...]:
        wire = self._wire
        if fresh:
            wire.sleep(timing.after_connect)
            self._last = wire.monotonic()
        self._settle(question, timing)
        request = self._framer.buildFrame(question.pdu())
        sent = wire.monotonic()
        wire.write(request)
        self._counters.requests += 1
        left = sent + REQUEST_BYTES * wire.character
        self._last = left
        asked = _Asked(question, timing, request, left)
        try:
            return self._answer(asked)
        except BusUnreachable:  # a converter may hand the answer to the next connection
            self._owe(asked)
            raise

    def _answer(self, asked: _Asked) -> tuple[int, ...]:
        wire, question = self._wire, asked.question
        begun = self._echo_cut(asked) if self._echo else b""
        data, first = self._collect(asked, begun)
        if not data:
            self._counters.timeouts += 1
            self._owe(asked)
            raise BusTimeout(
                f"no answer from unit {question.unit}, {question.function} 0x{question.address:04X}+{question.count}"
                f" within {asked.timing.timeout:g} s",
                hint=self._hint,
            )
        if wire.paced and first < asked.left + wire.character / 2:
            # An answer of ours needs one more character to arrive; half of it is left for the clock.
            raise self._garbled(asked, data, "bytes came before the request had left", answered=False)
        if self._wanted(question, data) != 0:
            raise self._garbled(asked, data)
        if after := wire.read(CHUNK, self._last + self._silence):
            self._last = wire.monotonic()
            raise self._garbled(asked, data + after, "more bytes came than belong to the answer")
        self._alone(asked, data)
        try:
            words = _registers(self._framer.handleFrame(data, question.unit, 0)[1], question)
        except BusRefused:
            self._quiet_until = wire.monotonic() + asked.timing.timeout  # so that a copy of it cannot refuse more
            raise
        if words is None:
            raise self._garbled(asked, data, "the checksum is wrong", answered=True)
        self._counters.answers += 1
        self._answered[_shape(question)] = wire.monotonic()
        self._forget_before(_shape(question))
        return words

    def _alone(self, asked: _Asked, frame: bytes) -> None:
        """Raises where a frame of the right shape may still be the answer to an earlier question."""
        wire = self._wire
        shape = _shape(asked.question)
        if shape in self._owed:
            heard = b""
            while more := wire.read(CHUNK, asked.deadline):
                heard += more
                self._last = wire.monotonic()
            if heard:
                if self._holds(shape, heard):
                    del self._owed[shape]
                raise self._garbled(asked, frame + heard, "two answers came, one of them late", answered=True)
        if frame[1] & 0x80 and any(
            earlier[:2] == shape[:2] and wire.monotonic() < owed.fence for earlier, owed in self._owed.items()
        ):
            what = "a refusal came that may answer an earlier question"
            raise self._garbled(asked, frame, what, answered=False)

    def _forget_before(self, shape: Shape) -> None:
        """A device answers in order: having answered this, it will not answer what it was asked long before."""
        now = self._wire.monotonic()
        for earlier in [e for e, owed in self._owed.items() if e[0] == shape[0] and e != shape and now >= owed.fence]:
            del self._owed[earlier]

    def _settle(self, question: Question, timing: Timing) -> None:
        """Drains the line until it may be spoken on: silence kept, nothing owed that would look like the answer."""
        wire = self._wire
        shape = _shape(question)
        now = wire.monotonic()
        for key in [key for key, owed in self._owed.items() if now >= owed.over]:
            del self._owed[key]
        patience = now + 2 * FENCE * timing.timeout + 1.0
        heard = b""
        while True:
            owed = self._owed.get(shape)
            recovered = max(self._quiet_until, owed.fence if owed else 0.0)
            ready = max(self._last + max(self._silence, timing.pause), recovered)
            if shape in self._answered and now - self._strange < DISTURBED:
                # On a line that repeats frames, a copy of the last answer of this shape may still be on its way.
                ready = max(ready, self._answered[shape] + timing.timeout)
            data = wire.read(CHUNK, ready)
            if not data:
                return
            now = wire.monotonic()
            self._counters.drained_bytes += len(data)
            self._last = self._strange = now
            heard = (heard + data)[-CHUNK:]
            for key in [key for key in self._owed if self._holds(key, heard)]:
                self._counters.foreign += 1
                del self._owed[key]
                heard = b""
            if now < recovered:
                self._quiet_until = now + timing.timeout
            if now > patience:
                self._counters.garbled += 1
                raise BusGarbled(
                    f"the line is never silent: {len(data)} bytes came just before the request to {question}",
                    hint="Another master on the line? Wrong baud rate? A missing bias or termination resistor?",
                )

    def _echo_cut(self, asked: _Asked) -> bytes:
        """What came behind the echo of our request. Without echo the line is not what its url says."""
        wire = self._wire
        data = b""
        while len(data) < REQUEST_BYTES and (more := wire.read(CHUNK, asked.left + self._slack)):
            data += more
            self._last = wire.monotonic()
        if data and not data.startswith(asked.request):
            raise self._garbled(asked, data, "the echo that the bus' url announces did not come", answered=False)
        return data[REQUEST_BYTES:]

    def _collect(self, asked: _Asked, data: bytes) -> tuple[bytes, float]:
        """The answer as far as it comes, and when its first byte came; empty after the deadline.

        Sleeping while the rest of a frame must still be on its way saves a wake-up per character.
        """
        wire = self._wire
        first = wire.monotonic()
        while not data.lstrip(b"\0") and len(data) <= STRAY_ZEROS:
            more = wire.read(CHUNK, asked.deadline)
            first = wire.monotonic()
            if not more:
                return b"", first
            data += more
            self._last = first
        stray = len(data) - len(data.lstrip(b"\0"))
        if stray <= STRAY_ZEROS and asked.question.unit:
            self._counters.drained_bytes += stray
            data = data[stray:]
        while (wanted := self._wanted(asked.question, data)) > 0:
            if wire.character:
                wire.sleep(wanted * wire.character)
            more = wire.read(CHUNK, wire.monotonic() + self._slack)
            if not more:
                break
            data += more
            self._last = wire.monotonic()
        return data, first

    def _wanted(self, question: Question, data: bytes) -> int:
        """Bytes that are missing from the frame: 0 when complete, negative when there are too many or wrong ones."""
        refusal = bytes((question.unit, question.code | 0x80))
        if not (question.header.startswith(data[:3]) or refusal.startswith(data[:2])):
            return -1
        if len(data) < REFUSAL_BYTES:
            return REFUSAL_BYTES - len(data)
        return (REFUSAL_BYTES if data[1] & 0x80 else REFUSAL_BYTES + 2 * question.count) - len(data)

    def _garbled(self, asked: _Asked, data: bytes, what: str = "", *, answered: bool | None = None) -> BusGarbled:
        """Hears out and names what came instead of an answer, and remembers whether the answer is still owed.

        `answered` is None where the bytes themselves must tell whether the answer was among them.
        """
        wire, question = self._wire, asked.question
        until = wire.monotonic() + asked.timing.timeout
        while more := wire.read(CHUNK, min(until, wire.monotonic() + self._slack)):
            data = (data + more)[-CHUNK:]
            self._last = wire.monotonic()
        self._counters.garbled += 1
        self._strange = wire.monotonic()
        self._quiet_until = self._strange + asked.timing.timeout
        if not (self._holds(_shape(question), data) if answered is None else answered):
            self._owe(asked)
        hint = "Noise: check shield, termination and that A and B are twisted together"
        speaker = _speaker(data)
        if data.startswith(asked.request):
            self._counters.echoed += 1
            what = "the request came back unchanged"
            hint = (
                "The adapter hears itself: switch its local echo off, or add echo=1 to the bus' url. "
                "If it does not, look for a second line or a device that repeats what it hears"
            )
        elif speaker is not None and speaker != question.unit:
            self._counters.foreign += 1
            what = f"unit {speaker} answered instead"
            hint = "Is another master asking on this line, or do two devices share a unit id? heliograph doctor"
        elif speaker is not None:
            self._counters.foreign += 1
            what = what or "the answer to another question came"
            hint = "Is another master asking on this line? If not, the device is slow: set a longer timeout"
        what = what or f"{len(data)} bytes came that are no answer to it"
        return BusGarbled(f"{question}: {what} ({data[:12].hex(' ')}{' ...' if len(data) > 12 else ''})", hint=hint)

    def _owe(self, asked: _Asked) -> None:
        whole = (REFUSAL_BYTES + 2 * asked.question.count) * self._wire.character + self._slack
        fence = asked.left + FENCE * asked.timing.timeout + whole
        self._owed[_shape(asked.question)] = _Owed(fence, asked.left + OWED)
        self._strange = self._wire.monotonic()
        self._quiet_until = max(self._quiet_until, self._strange + asked.timing.timeout)

    @staticmethod
    def _holds(shape: Shape, data: bytes) -> bool:
        """Whether a sound frame of that shape lies somewhere in these bytes."""
        header, size = bytes(shape), REFUSAL_BYTES + shape[2]
        at = data.find(header)
        while 0 <= at <= len(data) - size:
            if _sound(data[at : at + size]):
                return True
            at = data.find(header, at + 1)
        return False


def _shape(question: Question) -> Shape:
    return question.unit, question.code, 2 * question.count


def _sound(frame: bytes) -> bool:
    return FramerRTU.compute_CRC(frame[:-2]) == int.from_bytes(frame[-2:], "big")


def _speaker(data: bytes) -> int | None:
    """The unit of the sound answer that these bytes begin with, if they do."""
    if len(data) < REFUSAL_BYTES:
        return None
    size = REFUSAL_BYTES if data[1] & 0x80 else REFUSAL_BYTES + data[2]
    return data[0] if len(data) >= size and _sound(data[:size]) else None


# TCP ------------------------------------------------------------------------------------------------------------

MBAP_BYTES = 7
LONGEST_PDU = 253


class TcpExchange:
    """Modbus TCP: every answer carries the number of its request, so late ones are counted and left aside."""

    def __init__(self, wire: Wire, counters: BusCounters) -> None:
        self._wire = wire
        self._counters = counters
        self._framer = FramerSocket(_decoder())
        self._transaction = 0
        self._buffer = b""
        self._last = -OWED

    def ask(self, question: Question, timing: Timing, fresh: bool) -> tuple[int, ...]:
        wire = self._wire
        if fresh:
            self._begin(timing)
        wire.sleep(max(0.0, self._last + timing.pause - wire.monotonic()))
        try:
            while early := wire.read(CHUNK, wire.monotonic()):
                self._buffer += early
        except BusUnreachable:  # closed while nobody asked, as devices do after a few idle minutes
            wire.open()
            self._begin(timing)
        self._transaction = self._transaction % 0xFFFF + 1
        self._skip_others(question)
        wire.write(self._framer.buildFrame(question.pdu(self._transaction)))
        self._counters.requests += 1
        deadline = wire.monotonic() + timing.timeout
        silent = True
        while True:
            frame = self._skip_others(question)
            if frame:
                break
            more = wire.read(CHUNK, deadline)
            if not more:
                self._counters.timeouts += 1
                if silent:
                    self._drop()  # perhaps half open: the other side has forgotten us without a word
                raise BusTimeout(
                    f"no answer from unit {question.unit}, {question.function} 0x{question.address:04X}"
                    f"+{question.count} within {timing.timeout:g} s",
                    hint="Check the unit id; a device that allows one client may be serving another",
                )
            silent = False
            self._buffer += more
        self._last = wire.monotonic()
        return self._believed(question, frame)

    def _believed(self, question: Question, frame: bytes) -> tuple[int, ...]:
        unit, function = frame[6], frame[7]
        if unit != question.unit or function & 0x7F != question.code:
            self._counters.garbled += 1
            self._counters.foreign += 1
            raise BusGarbled(
                f"{question}: unit {unit} answered instead, function {function}",
                hint="Does the gateway change unit ids? Set the meter's unit to the one that answers",
            )
        data = frame[MBAP_BYTES + 1 :]
        right = len(data) == 1 if function & 0x80 else len(data) == 1 + 2 * question.count and data[0] == len(data) - 1
        if not right:
            self._counters.garbled += 1
            raise BusGarbled(
                f"{question}: an answer of {len(data)} bytes came ({data[:12].hex(' ')})",
                hint="The device does not answer what was asked; is its firmware current?",
            )
        words = _registers(self._framer.handleFrame(frame, question.unit, self._transaction)[1], question)
        if words is None:
            self._counters.garbled += 1
            raise BusGarbled(f"{question}: the answer cannot be decoded ({frame.hex(' ')})")
        self._counters.answers += 1
        return words

    def _skip_others(self, question: Question) -> bytes:
        """The frame that answers the current request, once it is whole; frames with other numbers are left aside."""
        while len(self._buffer) >= MBAP_BYTES:
            number = int.from_bytes(self._buffer[:2], "big")
            protocol = int.from_bytes(self._buffer[2:4], "big")
            length = int.from_bytes(self._buffer[4:6], "big")
            if protocol or not 3 <= length <= LONGEST_PDU + 1:
                garbage = self._buffer[:12]
                self._drop()
                self._counters.garbled += 1
                raise BusGarbled(
                    f"{question}: no Modbus TCP frame came ({garbage.hex(' ')})",
                    hint="A converter that hands over plain RTU? Then the url begins with rtu+tcp://",
                )
            frame, rest = self._buffer[: 6 + length], self._buffer[6 + length :]
            if len(frame) < 6 + length:
                return b""
            self._buffer = rest
            if number == self._transaction:
                return frame
            self._counters.foreign += 1
        return b""

    def _begin(self, timing: Timing) -> None:
        self._buffer = b""
        self._wire.sleep(timing.after_connect)

    def _drop(self) -> None:
        self._wire.close()
        self._buffer = b""
