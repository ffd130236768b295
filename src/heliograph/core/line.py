"""A bus' address as a value: which kind of line, where, and how fast its characters are."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from heliograph.core.errors import ConfigError

Way = Literal["serial", "tcp", "rtu+tcp"]
Parity = Literal["N", "E", "O"]

SHAPE = "serial:///dev/ttyUSB0?baudrate=9600&parity=N&stopbits=1, tcp://host:port or rtu+tcp://host:port"
_URL = re.compile(r"(?P<way>[a-z+]+)://(?P<rest>[^?#]*)(?:\?(?P<options>.*))?")
_HOST = re.compile(r"(?P<host>\[[0-9a-fA-F:.%]+\]|[^:/@\[\]]+)(?::(?P<port>\d{1,5}))?/?")
_ALLOWED = {
    "baudrate": re.compile(r"[1-9]\d{2,6}"),
    "parity": re.compile(r"[NEO]"),
    "stopbits": re.compile(r"[12]"),
    "bytesize": re.compile(r"8"),
    "echo": re.compile(r"[01]"),
}
_SUCH_AS = {"baudrate": "9600", "parity": "N, E or O", "stopbits": "1 or 2", "bytesize": "8", "echo": "0 or 1"}


@dataclass(frozen=True, slots=True)
class Line:
    """`at` is a device file or a host; port, speed and the rest are only meant where the way has them."""

    way: Way
    at: str
    port: int = 502
    baudrate: int = 9600
    parity: Parity = "N"
    stopbits: int = 1
    echo: bool = False
    """The adapter hears its own request and hands it back before the answer: it has to be there, and is cut off."""

    def __str__(self) -> str:
        return self.at if self.way == "serial" else f"{self.at}:{self.port}"

    @property
    def character(self) -> float:
        """Seconds one character takes on the line: start, eight bits, parity and stop. 0 on a network."""
        if self.way != "serial":
            return 0.0
        return (1 + 8 + (self.parity != "N") + self.stopbits) / self.baudrate


def parse(url: str) -> Line:
    """The line of a bus' `url`; a ConfigError tells what is wrong with it."""
    match = _URL.fullmatch(url)
    url = _hushed(url)  # from here on it is only quoted
    if match is None or match["way"] not in ("serial", "tcp", "rtu+tcp"):
        raise ConfigError(f"{url!r} is not the address of a bus", hint=f"Use {SHAPE}")
    options = _options(url, match["options"] or "")
    if match["way"] == "serial":
        if not match["rest"].startswith("/"):
            raise ConfigError(f"{url!r} names no port", hint="Use serial:///dev/ttyUSB0?baudrate=9600")
        parity: Parity = "E" if options.get("parity") == "E" else "O" if options.get("parity") == "O" else "N"
        return Line(
            "serial",
            match["rest"],
            baudrate=int(options.get("baudrate", "9600")),
            parity=parity,
            stopbits=int(options.get("stopbits", "1")),
            echo=options.get("echo") == "1",
        )
    host = _HOST.fullmatch(match["rest"])
    if host is None or not 0 < int(host["port"] or 502) <= 65535:
        raise ConfigError(f"{url!r} names no host and port", hint=f"Use {match['way']}://192.168.1.50:502")
    if set(options) - {"echo"}:
        raise ConfigError(f"{url!r}: a network line has no {', '.join(options)}", hint="Set it in the converter")
    way: Way = "tcp" if match["way"] == "tcp" else "rtu+tcp"
    return Line(way, host["host"].strip("[]"), port=int(host["port"] or 502), echo=options.get("echo") == "1")


def _hushed(url: str) -> str:
    """Without what stands before an @: a bus wants no user, but whoever writes one may write a password too."""
    return re.sub(r"^([A-Za-z+]*://)?.*@", r"\1***@", url, flags=re.DOTALL)


def _options(url: str, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, text.split("&")):
        name, _, value = part.partition("=")
        if name not in _ALLOWED:
            near = difflib.get_close_matches(name, _ALLOWED, 1)
            raise ConfigError(
                f"{url!r}: unknown line setting {name}",
                hint=f"Did you mean {near[0]}?" if near else f"Known: {', '.join(_ALLOWED)}",
            )
        if not _ALLOWED[name].fullmatch(value):
            raise ConfigError(f"{url!r}: {name} is not {value or 'empty'}", hint=f"Use {_SUCH_AS[name]}")
        found[name] = value
    return found
