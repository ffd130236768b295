"""Both stand-in platforms behind one address: REDEX under /public, D-REC under /api, faults on demand.

with Sandbox(now=clock.now, rate=clock.rate, seed=7) as sandbox:
    ...  # base_url = sandbox.url for REDEX, sandbox.url + "/api" for D-REC
    sandbox.away = True
assert sandbox.total_wh("redex", "STR1000000033862740") == metered and not sandbox.violations
"""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Self, TextIO
from zoneinfo import ZoneInfo

from heliograph.core.errors import ConfigError, UsageError
from heliograph.rehearsal import sandbox_drec, sandbox_redex
from heliograph.rehearsal.sandbox_drec import Device, Drec
from heliograph.rehearsal.sandbox_exchange import (
    Answer,
    BadJson,
    Exchange,
    Platform,
    Violation,
    Violations,
    is_text,
    iso,
    json_answer,
    read_json,
)
from heliograph.rehearsal.sandbox_faults import KINDS, Fault, FaultPlan, length_of, parse_fault
from heliograph.rehearsal.sandbox_redex import EARLIEST_ZONE, Redex
from heliograph.rehearsal.sandbox_redex_rules import Inverter
from heliograph.rehearsal.sandbox_server import Listener

_HTML = ("Content-Type", "text/html; charset=utf-8")
_PORTAL = b"<!doctype html><title>Welcome</title><h1>Please accept the terms of this network</h1>"
_UNAVAILABLE = b"<!doctype html><title>503 Service Temporarily Unavailable</title>"


class Sandbox:
    """Thread-safe. Everything it decides follows from `now` and `seed`; only sockets know real time.

    `rate` is how many seconds of `now` pass in a real one: waits (slow answers) are shortened by it. `timezone` is the
    REDEX group's; without one a day counts as over as soon as it is over anywhere on earth. Registration is open for
    a platform that was given no inverters or devices, unless `open_registration` says otherwise.
    """

    def __init__(
        self,
        now: Callable[[], datetime],
        *,
        seed: int = 0,
        token: str = "",
        host: str = "127.0.0.1",
        port: int = 0,
        rate: float = 1.0,
        timezone: str = "",
        processing_delay: timedelta = timedelta(seconds=2),
        slow: timedelta = timedelta(seconds=90),
        inverters: Iterable[Inverter] = (),
        devices: Iterable[Device] = (),
        open_registration: bool | None = None,
        default_kw: float = 50.0,
        faults: Iterable[Fault] | Mapping[str, float] = (),
        keep: Path | None = None,
        wait: Callable[[float], bool] | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.now = now
        self.rate = rate
        self.slow = slow
        self.requests: Counter[str] = Counter()
        """Requests by kind, whether or not a fault befell them: redex.batch, drec.send, ..."""
        self.faulted: Counter[str] = Counter()
        self._host, self._port = host, port
        self._wait = wait
        self._log = log
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._listener: Listener | None = None
        self._back: threading.Timer | None = None
        self._away = False
        self._violations = Violations(now)
        self._plan = FaultPlan(random.Random(seed))
        self._plan.set(faults)
        self._in_flight: dict[str, list[Exchange]] = {}
        self._keep: TextIO | None = None
        inverters, devices = tuple(inverters), tuple(devices)
        self.redex = Redex(
            now,
            self._violations,
            token="",
            seed=seed,
            zone=ZoneInfo(timezone) if timezone else EARLIEST_ZONE,
            processing_delay=processing_delay,
            inverters=inverters,
            open_registration=not inverters if open_registration is None else open_registration,
            journal=self._write,
        )
        self.drec = Drec(
            now,
            self._violations,
            seed=seed,
            devices=devices,
            open_registration=not devices if open_registration is None else open_registration,
            default_kw=default_kw,
            journal=self._write,
        )
        self.token = token or self.drec.issue(session=False)
        if keep is not None:
            self._restore(keep)

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        self._stopping.clear()
        self._listener = Listener(self._host, self._port, self)
        self._port = self._listener.port
        if self._away:
            self._listener.refuse()
        else:
            self._listener.start()
        return self

    def stop(self) -> None:
        self._stopping.set()
        if self._back is not None:
            self._back.cancel()
        if self._listener is not None:
            self._listener.stop()
            self._listener = None
        with self._lock:
            if self._keep is not None:
                self._keep.close()
                self._keep = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where REDEX lives; D-REC's base is this plus /api."""
        return f"http://{self._host}:{self._port}"

    def wait(self, seconds: float) -> bool:
        """Sandbox seconds; True where the sandbox is stopping."""
        if self._wait is not None:
            return self._wait(seconds)
        return self._stopping.wait(seconds / self.rate)

    # -- what a rehearsal sets -----------------------------------------------------------------------------------

    @property
    def token(self) -> str:
        """A token that both platforms accept for ever, beside those that log-in gives out."""
        return self.redex.token

    @token.setter
    def token(self, token: str) -> None:
        with self._lock:
            self.redex.token = self.drec.token = token

    def revoke(self) -> None:
        """Ends every token that log-in has given out; the fixed one stays."""
        with self._lock:
            self.redex.revoke()
            self.drec.revoke()

    @property
    def away(self) -> bool:
        """True: nobody listens; connecting is refused and open connections are cut."""
        return self._away

    @away.setter
    def away(self, away: bool) -> None:
        with self._lock:
            changed, self._away = self._away != away, away
        if changed and self._listener is not None:
            if away:
                self._listener.refuse()
            else:
                self._listener.accept()

    @property
    def faults(self) -> tuple[Fault, ...]:
        return self._plan.faults

    @faults.setter
    def faults(self, faults: Iterable[Fault] | Mapping[str, float]) -> None:
        with self._lock:
            self._plan.set(faults)

    def fault(self, kind: str, count: int = 1, on: str = "") -> None:
        """The next `count` requests (of kind `on`) suffer this; the rest of the plan stays."""
        with self._lock:
            self._plan.add(Fault(kind, on, count=count))

    def outage(self, start: datetime, length: timedelta, kind: str = "503", on: str = "") -> None:
        """Every request from `start` on, in the sandbox's time."""
        with self._lock:
            self._plan.add(Fault(kind, on, start=start, end=start + length))

    # -- what a rehearsal looks at -------------------------------------------------------------------------------

    @property
    def violations(self) -> list[Violation]:
        with self._lock:
            return list(self._violations.kept)

    def stored_wh(self, platform: Platform, remote_id: str) -> dict[date | datetime, int]:
        """What a reader of the platform would find: energy by day (REDEX) or by end of interval (D-REC)."""
        with self._lock:
            if platform == "redex":
                self.redex.settle()
                stored = series.stored if (series := self.redex.series.get(remote_id)) else {}
                return {day: entry.period // 10 for day, entry in sorted(stored.items())}
            state = self.drec.states.get(remote_id.strip().lower())
            ends = {end: wh for _, end, wh in state.history} | state.reads if state else {}
            return dict[date | datetime, int](sorted(ends.items()))

    def total_wh(self, platform: Platform, remote_id: str) -> int:
        """The sum of what is stored; the baseline of an Aggregate device is not in it."""
        return sum(self.stored_wh(platform, remote_id).values())

    def state(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        with self._lock:
            self.redex.settle()
            redex = {
                remote_id: {
                    day.isoformat(): {"period_wh": entry.period // 10, "total_wh": entry.total // 10}
                    for day, entry in sorted(series.stored.items())
                }
                for remote_id, series in self.redex.series.items()
            }
            drec = {state.device.external_id: _drec_state(state) for state in self.drec.states.values()}
            pending = sum(len(p.records) for p in self.redex.processes.values() if not p.settled)
            return {
                "now": iso(self.now()),
                "away": self._away,
                "redex": {"devices": redex, "pending": pending},
                "drec": {"devices": drec},
                "requests": dict(sorted(self.requests.items())),
                "faults": [str(fault) for fault in self._plan.faults],
                "faulted": dict(sorted(self.faulted.items())),
                "violation_count": self._violations.count,
                "violations": [violation.as_json() for violation in self._violations.kept],
            }

    # -- requests ------------------------------------------------------------------------------------------------

    def handle(
        self,
        method: str,
        path: str,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        client: str = "127.0.0.1",
    ) -> Answer:
        """One whole exchange without a socket."""
        exchange = self.begin(method, f"{path}?{query}" if query else path)
        try:
            return self.answer(exchange, dict(headers or {}), body, client)
        finally:
            self.end(exchange)

    def begin(self, method: str, target: str, alive: Callable[[], bool] = lambda: True) -> Exchange:
        """Counts the request, chooses its fault, and notices a second one in flight for the same device."""
        path, _, query = target.partition("?")
        exchange = Exchange(method, path, query, "other", None, alive=alive)
        if path.startswith("/_sandbox/"):
            return exchange
        if path.startswith(sandbox_redex.PREFIX):
            exchange.platform, exchange.kind = "redex", Redex.kind(method, path)
        elif path.startswith(sandbox_drec.PREFIX + "/"):
            exchange.platform = "drec"
            exchange.path = path[len(sandbox_drec.PREFIX) :]
            exchange.kind = Drec.kind(method, exchange.path)
            exchange.device = Drec.device_of(method, exchange.path)
        with self._lock:
            self.requests[exchange.kind] += 1
            exchange.fault = "away" if self._away else self._plan.choose(exchange.kind, self.now())
            if exchange.fault:
                self.faulted[exchange.fault] += 1
            if exchange.device:
                others = self._in_flight.setdefault(exchange.device, [])
                if any(other.alive() for other in others):
                    text = "a second request for the device while the first was in flight"
                    self._violations.add("drec", "in-flight", text, f"{method} {path}")
                others.append(exchange)
        return exchange

    def end(self, exchange: Exchange) -> None:
        with self._lock:
            if exchange.device:
                self._in_flight[exchange.device].remove(exchange)
        if exchange.afterwards is not None:
            exchange.afterwards()

    def answer(self, exchange: Exchange, headers: dict[str, str], body: bytes, client: str) -> Answer:
        with self._lock:
            answer = self._decide(exchange, headers, body, client)
        if self._log is not None:
            fault = f" ({exchange.fault})" if exchange.fault else ""
            self._log(f"{iso(self.now())} {exchange.kind} {exchange.method} {exchange.path} {answer.status}{fault}")
        return answer

    def _decide(self, exchange: Exchange, headers: dict[str, str], body: bytes, client: str) -> Answer:
        if exchange.path.startswith("/_sandbox/"):
            return self._control(exchange, body)
        platform, fault = exchange.platform, exchange.fault
        if platform is None:
            return Answer(404, (("Content-Type", "text/plain"),), b"Not Found\n")
        if exchange.unread:
            return Answer(0, delivery="drop")
        if fault is not None and KINDS[fault].phase == "before":
            return _BEFORE[fault](platform)
        if platform == "drec":
            answer = self.drec.handle(exchange.method, exchange.path, exchange.query, headers, body)
        else:
            troubled = fault is not None and KINDS[fault].phase == "process"
            if troubled:
                self.redex.next_outcome = "half" if fault == "half" else "Failed"
            answer = self.redex.handle(exchange.method, exchange.path, exchange.query, headers, body, client=client)
            if troubled:
                self.redex.next_outcome = "Success"
        if fault is None or KINDS[fault].phase != "after" or answer.delivery == "hang":
            return answer
        if fault == "slow":
            return replace(answer, delay=self.slow.total_seconds())
        return _AFTER[fault](platform, answer)

    # -- the rehearsal's own page --------------------------------------------------------------------------------

    def _control(self, exchange: Exchange, body: bytes) -> Answer:
        route = (exchange.method, exchange.path)
        if route == ("GET", "/_sandbox/state"):
            return json_answer(200, self.state())
        if exchange.path == "/_sandbox/portal":
            return Answer(200, (_HTML,), _PORTAL)
        if route != ("POST", "/_sandbox/faults"):
            return json_answer(404, {"error": "GET /_sandbox/state, POST /_sandbox/faults"})
        try:
            self._command(exchange, read_json(body or b"{}"))
        except (BadJson, UsageError) as exc:
            hint = exc.hint if isinstance(exc, UsageError) else ""
            return json_answer(400, {"error": str(exc), "hint": hint})
        return json_answer(200, {"faults": [str(fault) for fault in self._plan.faults], "away": self._away})

    def _command(self, exchange: Exchange, wish: object) -> None:
        """`faults` replaces the plan, `add` adds to it; `{"away": "36h"}` refuses that long; `{"revoke": true}`."""
        known = {"faults", "add", "away", "revoke"}
        if not isinstance(wish, dict) or not wish.keys() <= known:
            raise UsageError("unknown member", hint="Known: " + ", ".join(sorted(known)))
        texts = {name: wish.get(name, []) for name in ("faults", "add")}
        if not all(isinstance(lines, list) and all(map(is_text, lines)) for lines in texts.values()):
            raise UsageError("faults and add are lists of text", hint='For instance {"faults": ["html=0.05"]}')
        parsed = {name: [parse_fault(line, self.now()) for line in lines] for name, lines in texts.items()}
        if "away" in wish:
            if not is_text(wish["away"]):
                raise UsageError("away is a duration", hint='For instance {"away": "10m"}')
            length = length_of(wish["away"])
            exchange.afterwards = lambda: self._leave(length)
        if "faults" in wish:
            self._plan.set(parsed["faults"])
        for fault in parsed["add"]:
            self._plan.add(fault)
        if wish.get("revoke") is True:
            self.revoke()

    def _leave(self, length: timedelta) -> None:
        """Away for a while, after the answer to the request that asked for it."""
        self.away = True
        self._back = threading.Timer(length.total_seconds() / self.rate, self._return)
        self._back.daemon = True
        self._back.start()

    def _return(self) -> None:
        if not self._stopping.is_set():
            self.away = False

    # -- the file that survives a restart ------------------------------------------------------------------------

    def _write(self, event: dict[str, Any]) -> None:
        """One line for each accepted request, written before its answer leaves."""
        if self._keep is not None:
            self._keep.write(json.dumps(event, separators=(",", ":")) + "\n")
            self._keep.flush()

    def _restore(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            whole = text[: text.rfind("\n") + 1]  # a line cut by a crash was never answered
            self._replay(path, whole)
            if whole != text:
                path.write_text(whole, encoding="utf-8")
            self._keep = path.open("a", encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise UsageError(f"cannot keep what is stored in {path}: {exc}", hint="Name another file") from exc

    def _replay(self, path: Path, text: str) -> None:
        readers = {
            "redex": self.redex.restore,
            "drec_device": self.drec.restore_device,
            "drec_read": self.drec.restore_read,
        }
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                [(name, event)] = json.loads(line).items()
                readers[name](event)
            except (ValueError, KeyError, TypeError, AttributeError) as exc:
                raise ConfigError(
                    "this is not what a sandbox keeps", hint="Name another file with --keep", path=path, line=number
                ) from exc


def _drec_state(state: sandbox_drec.State) -> dict[str, Any]:
    total = 0
    reads = {}
    for end, wh in sorted(state.reads.items()):
        total += wh
        reads[iso(end)] = {"period_wh": wh, "total_wh": total}
    return {
        "type": state.read_type,
        "reads": reads,
        "counters": {iso(end): wh for end, wh in sorted(state.counters.items())},
        "history": [{"start": iso(a), "end": iso(b), "period_wh": wh} for a, b, wh in sorted(state.history)],
    }


def _either(redex: Answer, drec: Answer) -> Callable[[Platform], Answer]:
    return lambda platform: redex if platform == "redex" else drec


def _always(answer: Answer) -> Callable[[Platform], Answer]:
    return lambda _: answer


_BROKEN = _either(json_answer(500, {"message": "Internal Server Error"}), sandbox_drec.internal_error())
_TOO_MANY = sandbox_redex.too_many(30)

_BEFORE: dict[str, Callable[[Platform], Answer]] = {
    "500-before": _BROKEN,
    "503": _always(Answer(503, (_HTML,), _UNAVAILABLE)),
    "429": _always(_TOO_MANY),
    "429-bare": _always(replace(_TOO_MANY, headers=_TOO_MANY.headers[:1])),
    "429-wrong": _always(replace(_TOO_MANY, headers=(*_TOO_MANY.headers[:1], ("Retry-After", "soon")))),
    "html": _always(Answer(200, (_HTML,), _PORTAL)),
    "empty": _always(Answer(200)),
    "redirect": _always(Answer(302, (_HTML, ("Location", "/_sandbox/portal")), _PORTAL)),
    "401": _either(sandbox_redex.unauthorized(), sandbox_drec.unauthorized()),
    "403": _either(sandbox_redex.forbidden(), sandbox_drec.forbidden()),
    "leak": _always(sandbox_drec.leaked()),
}

_AFTER: dict[str, Callable[[Platform, Answer], Answer]] = {
    "drop-after": lambda _, answer: replace(answer, delivery="drop"),
    "500-after": lambda platform, _: _BROKEN(platform),
    "truncate": lambda _, answer: replace(answer, delivery="truncate"),
    "cut-json": lambda _, answer: replace(answer, body=answer.body[: len(answer.body) // 2] or b'{"'),
    "html-after": lambda *_: Answer(200, (_HTML,), _PORTAL),
    "empty-after": lambda *_: Answer(200),
}
