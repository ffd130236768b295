"""The arrow of imports, read from the sources: who may know whom, and who may know which library."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent.parent / "src" / "heliograph"

ADAPTERS = {"bus", "store", "uplink", "outputs"}
FILES = {"toml_lines", "library", "settings"}
WHOLE = {"core", "ports", "clock", "seal", "logs", "control", "work", "app", "daemon"} | FILES

# A row is a room (a module or package right below heliograph) or one module of it, which then goes before its room.
# Behind it: the rooms, or modules of them, that it may import beside itself. What is not listed does not exist for it.
MAY_KNOW: dict[str, set[str]] = {
    "core": set(),
    "ports": {"core"},
    **{room: {"core", "ports"} for room in ADAPTERS},
    "uplink.certificate": {"core", "seal"},  # whose environment for child processes holds no secrets
    "work": {"core", "ports", "store"},  # SQLite is ours and quick, so it is used directly
    "clock": {"core"},
    "toml_lines": {"core"},
    "library": {"core", "toml_lines"},
    "settings": {"core", "toml_lines", "library"},
    "seal": {"core"},
    "logs": set(),
    "control": {"core"},  # the question and the answer on the local socket
    "app": {"core", "ports", "clock", "logs", "seal", "work", "web.server"} | FILES | ADAPTERS,
    # hands the app's store to the work, and what it knows beside it to the REST
    "daemon": {"core", "ports", "control", "store", "work", "app", "web.api", "web.route"},
    # looks into the store through read-only connections of its own; a map is made again from its stored text
    "web": {"core", "ports", "work", "app", "store", "library"},
    "web.server": {"core", "ports"},  # an output
    "support": WHOLE | {"store"},  # looks everywhere, and decides nothing
    "cli": WHOLE | {"support"},
    **{f"cli.{verb}": WHOLE | {"rehearsal"} for verb in ("simulate", "fleet", "sandbox", "demo", "commission")},
    "rehearsal": {"core", "library"},  # never our own bus or uplink: a mistake made twice would look right
    "rehearsal.demo": WHOLE | {"store"},  # runs the product as a person would, then compares with what it stored
    # counts and sends what the product's own outputs say
    "rehearsal.fleet": {"core", "library", "ports", "outputs"},
    "rehearsal.fleet_bytes": {"outputs"},
    "rehearsal.fleet_send": {"core", "outputs"},
    "__main__": {"cli"},
}

# What takes a decision away from one place, or memory from a small box, has one room.
ONLY_IN = {
    "pymodbus": {"bus"},
    "serial": {"bus"},
    "httpx": {"uplink"},
    "paho": {"outputs"},
    "google": {"outputs.sparkplug_payload", "outputs.sparkplug_b_pb2"},  # 6 MB
    "prometheus_client": {"outputs.metrics"},
    "sqlite3": {"store", "cli.version", "support"},  # the latter only say which SQLite it is
    "sqlite_utils": {"store"},
    "apscheduler": {"daemon"},
    "pydantic": {"library", "settings"},
    "pydantic_settings": {"settings"},
    "click": {"cli"},
    "rich": {"cli"},
    "starlette": {"web"},
    "uvicorn": {"web"},
    "jinja2": {"web"},
    "cryptography": {"seal", "uplink.certificate"},  # both in processes of their own
    "astral": {"core.daylight"},
    "asyncio": {"web"},  # threads everywhere else
}

# Memory: a verb is imported when it is asked for, and structlog without the rich that it would draw with.
BY_STRING = {"cli", "logs"}

# The part of the standard library in which nothing happens: no file, network, clock, thread, chance or log.
PURE = """
    __future__ abc base64 binascii bisect calendar collections dataclasses datetime decimal difflib enum fractions
    functools hashlib heapq hmac itertools json math operator re statistics string struct textwrap tomllib types typing
    unicodedata zlib zoneinfo
"""
# Beside core, what an output decides without a peer.
PURE_OUTPUTS = {"outputs.sparkplug_payload", "outputs.sparkplug_session", "outputs.sparkplug_history"}
PURE_EXCEPT = {
    "core.errors": {"pathlib"},  # the type of the file that an error points to
    "outputs.sparkplug_payload": {"google"},  # arithmetic: values to bytes and back
    "core.daylight": {"astral"},  # arithmetic: the sun's place from a position and a moment, both handed in
}

# Everyone but these is told what time it is: the clock; a scheduler, which counts in wall time also in a rehearsal; the
# simulator, which stands where a real meter under the real sun would.
ASKS_THE_TIME = {"clock", "daemon", "cli.simulate"}
WALL_CLOCK = {("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today")}
WALL_CLOCK |= {("time", "time"), ("time", "time_ns"), ("time", "localtime"), ("time", "gmtime")}
# Built-ins that reach outside.
IMPURE = {"open", "print", "input"}


@dataclass(frozen=True, slots=True)
class Import:
    by: str
    """Dotted, below heliograph; "" is the package itself."""
    name: str
    line: int


def modules(root: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), ast.parse(path.read_text(), str(path))


def imports(by: str, tree: ast.Module) -> Iterator[Import]:
    """All of them, also those inside functions and under TYPE_CHECKING: they are knowledge too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(by, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(by, "." * node.level + f"{node.module or ''}.{alias.name}".lstrip("."), node.lineno)


def objection(found: Import) -> str:
    """Why this import turns the arrow, or an empty text."""
    room = found.by.partition(".")[0]
    package, _, inner = found.name.partition(".")
    if package == "":
        return "is relative"
    if package == "heliograph":
        target = inner.partition(".")[0]
        if target in ("", "__version__", room):
            return "" if target == room or room != "core" else "core depends on nothing"
        row = found.by if found.by in MAY_KNOW else room
        if row and row not in MAY_KNOW:
            return "stands in a room that MAY_KNOW does not list"
        may = {target, ".".join(inner.split(".")[:2])} & MAY_KNOW.get(row, set())
        return "" if may else f"is not for {row or 'the package itself'}"
    if package == "importlib" and not inner.startswith(("resources", "metadata")) and found.by not in BY_STRING:
        return "imports by string"
    if not {room, found.by} & ONLY_IN.get(package, {room}):
        return f"is only for {', '.join(sorted(ONLY_IN[package]))}"
    if (room == "core" or found.by in PURE_OUTPUTS) and package not in {*PURE.split(), *PURE_EXCEPT.get(found.by, ())}:
        return "is not pure"
    return ""


def bad_calls(name: str, tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=called)) if name not in ASKS_THE_TIME:
                if (owner, called) in WALL_CLOCK:
                    yield f"{owner}.{called}() asks what time it is", node.lineno
            case ast.Call(func=ast.Name(id=called)) if (
                name.startswith("core.") or name in PURE_OUTPUTS
            ) and called in IMPURE:
                yield f"{called}() is not pure", node.lineno


def violations(root: Path) -> list[str]:
    found = []
    for name, tree in modules(root):
        for entry in imports(name, tree):
            if why := objection(entry):
                found.append(f"heliograph.{name}:{entry.line}: {entry.name} {why}")
        found += [f"heliograph.{name}:{line}: {why}" for why, line in bad_calls(name, tree)]
    return found


def test_imports_point_inwards() -> None:
    assert violations(SOURCES) == []


def test_restless_libraries_are_imported_in_one_module() -> None:
    for library in ("pymodbus", "apscheduler"):
        found = (entry for name, tree in modules(SOURCES) for entry in imports(name, tree))
        users = {entry.by for entry in found if entry.name.partition(".")[0] == library}
        assert len(users) <= 1, f"{library} is imported in {sorted(users)}"


def test_every_room_has_its_row() -> None:
    """A new top-level module must say whom it may know before it imports anything."""
    rooms = {name.partition(".")[0] for name, _ in modules(SOURCES)} - {""}
    assert rooms <= MAY_KNOW.keys()


def test_rooms_of_libraries_exist_in_the_table() -> None:
    assert {place.partition(".")[0] for rooms in ONLY_IN.values() for place in rooms} <= MAY_KNOW.keys()
    assert not set(PURE.split()) - sys.stdlib_module_names


@pytest.mark.parametrize(
    ("module", "line", "told"),
    [
        ("core/plan.py", "import time", "time is not pure"),
        ("core/plan.py", "import pydantic", "pydantic is only for"),
        ("core/plan.py", "import yaml", "yaml is not pure"),
        ("outputs/sparkplug_session.py", "import threading", "threading is not pure"),
        ("core/daily.py", "from astral.sun import elevation", "is only for core.daylight"),
        ("core/plan.py", "from pathlib import Path", "pathlib.Path is not pure"),
        ("core/plan.py", "from heliograph.ports import Clock", "heliograph.ports.Clock is not for core"),
        ("core/plan.py", "from heliograph import __version__", "core depends on nothing"),
        ("core/plan.py", "x = datetime.now(UTC)", "datetime.now() asks what time it is"),
        ("core/plan.py", "x = open(path)", "open() is not pure"),
        ("core/deep/plan.py", "def f():\n    import socket", "socket is not pure"),
        ("ports.py", "import heliograph.store", "heliograph.store is not for ports"),
        ("bus/modbus.py", "from heliograph.store import db", "heliograph.store.db is not for bus"),
        ("bus/modbus.py", "from heliograph import uplink", "heliograph.uplink is not for bus"),
        ("bus/modbus.py", "from . import line", ".line is relative"),
        ("store/db.py", "import heliograph.work.poll", "heliograph.work.poll is not for store"),
        ("uplink/redex.py", "if TYPE_CHECKING:\n    from heliograph.settings import Site", "is not for uplink"),
        ("work/deliver.py", "from heliograph.uplink.redex import Redex", "is not for work"),
        ("work/poll.py", "from heliograph.app import build", "is not for work"),
        ("daemon.py", "from heliograph.web.server import Web", "heliograph.web.server.Web is not for daemon"),
        ("app.py", "from heliograph.web import api", "heliograph.web.api is not for app"),
        ("work/poll.py", "at = time.time()", "time.time() asks what time it is"),
        ("work/poll.py", "import pymodbus.client", "pymodbus.client is only for bus"),
        ("cli/status.py", "import sqlite3", "sqlite3 is only for"),
        ("cli/status.py", "from heliograph.bus.modbus import Line", "is not for cli"),
        ("cli/status.py", "from heliograph.rehearsal import meters", "is not for cli"),
        ("app.py", "import importlib\nimportlib.import_module(name)", "imports by string"),
        ("rehearsal/sandbox.py", "from heliograph.uplink import redex", "is not for rehearsal"),
        ("utils.py", "from heliograph.core import plan", "a room that MAY_KNOW does not list"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, module: str, line: str, told: str) -> None:
    planted = tmp_path / module
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(line + "\n")
    (complaint,) = violations(tmp_path)
    assert told in complaint


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("core/errors.py", "from pathlib import Path"),
        ("core/daily.py", "from zoneinfo import ZoneInfo"),
        ("work/poll.py", "from heliograph.store import db"),
        ("daemon.py", "from heliograph.web import api"),
        ("cli/demo.py", "from heliograph.rehearsal import demo"),
        ("rehearsal/demo.py", "from heliograph.daemon import run"),
        ("cli/version.py", "from heliograph import __version__"),
        ("library.py", "from importlib import resources"),
        ("cli/__init__.py", "import importlib"),
        ("clock.py", "at = datetime.now(UTC)"),
        ("bus/modbus.py", "import pymodbus.framer, serial"),
    ],
)
def test_what_the_arrow_allows_is_not_reported(tmp_path: Path, module: str, line: str) -> None:
    allowed = tmp_path / module
    allowed.parent.mkdir(parents=True, exist_ok=True)
    allowed.write_text(line + "\n")
    assert violations(tmp_path) == []
