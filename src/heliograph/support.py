"""What somebody far away needs to see of a gateway, gathered into one file: `heliograph support`.

Each part stands by itself: what cannot be had is said instead, so a broken configuration or a damaged store costs its
own part and no other. Nothing is believed to be harmless: the configuration shows only keys that are known to be, and
every text passes a sieve of all the secrets that can be found on this computer.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import shutil
import socket
import sqlite3
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from zoneinfo import available_timezones

from heliograph import __version__, app, clock, control, library
from heliograph.core import quantity
from heliograph.core.errors import HeliographError
from heliograph.core.health import as_json
from heliograph.core.recording import pattern
from heliograph.store.connection import FILE
from heliograph.work.decide import waiting
from heliograph.work.health import health

DATA_DIR = Path("/var/lib/heliograph")
UNIT = "heliograph"
MOST = 256 * 1024
"""Characters of one part."""
EVENTS = 500
ROWS = 300
LOG_LINES = 400
SECRET_BYTES = 16 * 1024
_HIDDEN = "***"

# The last part of a key, and its value is shown. Whatever stands behind another key is not.
SAFE_KEYS = frozenset({
    "id", "timezone", "data_dir", "url", "every", "store_every", "timeout", "pause", "retries", "bus", "unit", "map",
    "rated_kw", "production", "report_as", "baseline_kwh", "accept_unverified_map", "order", "factors", "serial",
    "base_url", "ca_file", "spread", "per_minute", "dialect", "path_single", "path_batch", "path_query", "path_status",
    "accumulated_field", "send_frequency_type", "decimals", "value_encoding", "max_records", "absent_after",
    "read_type", "organization_id", "after", "max_estimated", "on_gap", "trust", "fine", "hourly",
    "root", "qos", "dead_band", "heartbeat", "certificate_file", "key_file", "group", "node", "primary_host", "history",
})  # fmt: skip
ROUGH_KEYS = frozenset({"latitude", "longitude"})
"""Rounded to a tenth of a degree: who helps need not know which roof it is."""
SECRET_KEYS = frozenset({"token", "login", "api_key", "client_id", "client_secret", "username", "password"})
_HEADER = re.compile(r"\s*(\[\[?)\s*([A-Za-z0-9_.\- ]+?)\s*(\]\]?)\s*(#.*)?")
_KEY = re.compile(r"(?P<key>\s*[\"']?[A-Za-z0-9_.\-]+[\"']?\s*=\s*)(?P<value>.*)")
_STRING = re.compile(r"\"((?:[^\"\\]|\\.)*)\"|'([^']*)'")
_PLACE = re.compile(r"\b(?P<kind>file|env|credential)\s*=\s*(?:\"(?P<a>[^\"]*)\"|'(?P<b>[^']*)')")
_USER = re.compile(r"(?<=://)[^/\s\"'#?]*@")
_TOKENS = (
    (re.compile(r"eyJ[A-Za-z0-9_=-]{6,}\.[A-Za-z0-9_=-]+(?:\.[A-Za-z0-9_=-]*)?"), _HIDDEN),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {_HIDDEN}"),
)
_SECRET_NAMES = re.compile(r"(?i)token|secret|passw|key|credential|auth")
_NUMBER = r"([0-9A-Za-z][0-9A-Za-z-]{4,})"
_SERIALS = re.compile(
    rf"serial(?: number)?(?: changed from| of)?[ :=\"'(]{{1,20}}{_NUMBER}(?: to {_NUMBER})?"
    rf"|--new-serial {_NUMBER}|configuration says {_NUMBER}"
)


@dataclass(frozen=True)
class Bundle:
    """Texts by name, in the order they are packed."""

    site: str
    parts: Mapping[str, str]
    missing: Mapping[str, str] = field(default_factory=dict)
    """Parts that could not be had, and why."""
    secrets: int = 0
    """How many were known and looked for."""

    def packed(self) -> bytes:
        """One zip; the same texts give the same bytes."""
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as pack:
            for name, text in self.parts.items():
                pack.writestr(zipfile.ZipInfo(f"heliograph-support/{name}"), text.encode(), zipfile.ZIP_DEFLATED)
        return file.getvalue()


@dataclass(frozen=True)
class _Site:
    """As much of the site as can be had."""

    config: Path
    text: str
    app: app.App | None
    error: str
    data_dir: Path
    local: Path

    def ask(self, question: str) -> Any:
        """The running gateway's answer; None when none runs."""
        return control.ask(self.data_dir / "heliograph.sock", question)


def gather(
    config: Path,
    *,
    with_serials: bool = False,
    local: Path = library.LOCAL,
    environ: Mapping[str, str] = os.environ,
) -> Bundle:
    """Everything, with secrets taken out, and serial numbers masked unless somebody wants them."""
    site = _site(config, local, environ)
    secrets = found_secrets(site.text, environ)
    told: dict[str, str] = {}
    missing: dict[str, str] = {}
    serials: set[str] = set()
    for name, part in _parts(site, environ, serials, with_serials):
        try:
            told[name] = part()
        except Exception as error:  # noqa: BLE001 - whatever is broken here, the rest is all the more wanted
            words = f"{error.message}. {error.hint}" if isinstance(error, HeliographError) else repr(error)
            missing[name] = words
            told[name] = f"This could not be had: {words}\n"
    sieve = app.sieve(secrets)
    hide = _no_serials(serials | _named(told.values())) if not with_serials else str
    told = {name: _cut(_clean(sieve(hide(text)))) for name, text in told.items()}
    missing = {name: _clean(sieve(hide(words))) for name, words in missing.items()}
    readme = _readme(told, missing, with_serials, len(secrets))
    name = site.app.config.settings.site.id if site.app is not None else "unknown"
    return Bundle(name, {"README.txt": _clean(sieve(hide(readme))), **told}, missing, len(secrets))


def _parts(
    site: _Site, environ: Mapping[str, str], serials: set[str], with_serials: bool
) -> Iterator[tuple[str, Callable[[], str]]]:
    """Name and maker of every part, in order. What is learned of serial numbers on the way goes into `serials`."""
    yield "check.txt", lambda: _check(site)
    yield "config.toml", lambda: _redacted_file(site, environ)
    yield "status.json", lambda: _json(_status(site, serials))
    yield "backlog.json", lambda: _json(_backlog(site))
    yield "events.json", lambda: _json(_events(site, serials))
    yield "frames.txt", lambda: _frames(site, None if with_serials else serials)
    yield "maps.json", lambda: _json(_maps(site))
    for path in sorted(site.local.glob("*.toml")) if site.local.is_dir() else ():
        yield f"maps/{path.name}", lambda path=path: path.read_text(encoding="utf-8", errors="replace")  # type: ignore[misc]  # the loop's own
    yield "versions.json", lambda: _json(_versions())
    yield "system.json", lambda: _json(_system(site))
    yield "service.txt", _service


# --- the configuration ----------------------------------------------------------------------------------------------


def _site(config: Path, local: Path, environ: Mapping[str, str]) -> _Site:
    text, error, loaded = "", "", None
    try:
        with suppress(OSError):
            text = config.read_bytes().decode("utf-8", "replace")
        loaded = app.load(config)
    except HeliographError as exc:
        error = f"{exc}\n  {exc.hint}"
    except Exception as exc:  # noqa: BLE001 - a configuration that breaks the program is just what has to be sent
        error = repr(exc)
    if loaded is not None:
        return _Site(config, text, loaded, "", loaded.data_dir, local)
    named = re.search(r"^\s*data_dir\s*=\s*[\"']([^\"']+)", text, re.MULTILINE)
    folder = named[1] if named else environ.get("HELIOGRAPH_SITE__DATA_DIR", str(DATA_DIR))
    return _Site(config, text, None, error, Path(folder), local)


def _check(site: _Site) -> str:
    if site.app is None:
        return f"{site.config} cannot be used:\n{site.error}\n"
    lines = [f"{site.config} is fit to run."]
    for meter in site.app.meters:
        lines.append(
            f"{meter.id}: unit {meter.unit} on {meter.bus}, map {meter.map.name} ({meter.map.status}),"
            f" {meter.production} is production, time-out {meter.timing.timeout:g} s"
        )
    return "\n".join(lines) + "\n"


def _redacted_file(site: _Site, environ: Mapping[str, str]) -> str:
    if not site.text:
        raise FileNotFoundError(f"{site.config} cannot be read")
    lines = redacted(site.text).splitlines()
    names = sorted(name for name in environ if name.upper().startswith("HELIOGRAPH_"))
    lines += ["", "# Variables of the environment that `heliograph support` was started in:"] if names else []
    for name in names:
        shown = environ[name] if name.lower().split("__")[-1] in SAFE_KEYS and "__" in name else _HIDDEN
        lines.append(f"# {name} = {shown}")
    return "\n".join(lines) + "\n"


def redacted(text: str) -> str:
    """A configuration, also one that is no TOML, with as many lines as before: an error's line is still that line.

    A line is shown where its key is known to be harmless; of secrets the place is shown where that is one.
    """
    shown = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            shown.append("#" if line.strip() else "")
        elif head := _HEADER.fullmatch(line):
            shown.append(f"{head[1]}{head[2]}{head[3]}")
        elif match := _KEY.fullmatch(line):
            parts = [part.strip("\"' ") for part in match["key"].rstrip("= \t").split(".")]
            shown.append(f"{match['key'].rstrip()} {_shown(parts, match['value'])}")
        else:
            shown.append(_HIDDEN)
    return "\n".join(shown)


def _shown(key: Sequence[str], value: str) -> str:
    value = _uncommented(value)
    if any(part in SECRET_KEYS for part in key):
        places = [place for match in _PLACE.finditer(value) if (place := _place(match))]
        return f"{{ {', '.join(places)} }}" if places else _HIDDEN
    if key[-1] in ROUGH_KEYS:
        with suppress(ValueError):
            return f"{float(value):.1f}"
        return _HIDDEN
    if key[-1] not in SAFE_KEYS or value.startswith(("'''", '"""')):
        return _HIDDEN
    if "{" in value and key[-1] not in ("report_as", "factors"):
        return _HIDDEN
    value = _USER.sub(f"{_HIDDEN}@", value)
    return re.sub(r"(https?://[^\s\"'?#]*)[?#][^\s\"']*", rf"\1?{_HIDDEN}", value)


def _place(match: re.Match[str]) -> str:
    """A path that could be one; the name of a variable is not shown, for it might be the secret itself."""
    told = match["a"] or match["b"] or ""
    if match["kind"] == "file" and told.startswith("/") and Path(told).parent.is_dir():
        return f'file = "{told}"'
    return f"{match['kind']} = {_HIDDEN}"


def _uncommented(value: str) -> str:
    """Without the comment behind it."""
    quote = ""
    for at, one in enumerate(value):
        if quote:
            quote = "" if one == quote else quote
        elif one in "\"'":
            quote = one
        elif one == "#":
            return value[:at].strip()
    return value.strip()


def found_secrets(text: str, environ: Mapping[str, str]) -> frozenset[str]:
    """All the secrets that can be found: those the configuration names, those written into it, those around us."""
    found: set[str] = set()
    for named in _PLACE.finditer(text):
        told = named["a"] or named["b"] or ""
        if named["kind"] == "env":
            found |= {environ.get(told, ""), *([] if told in environ else [told])}
        else:
            folders = [Path(environ.get("CREDENTIALS_DIRECTORY", "/")), Path("/etc/credstore")]
            paths = [Path(told)] if named["kind"] == "file" else [folder / told for folder in folders]
            read = [content for path in paths if (content := _content(path))]
            found |= set(read) if read or told.startswith("/") else {told}
    for line in text.splitlines():
        match = _KEY.fullmatch(line)
        if line.lstrip().startswith("#") or match is None or match["key"].strip(" =\t\"'") in SAFE_KEYS:
            continue
        literals = {one[0] or one[1] for one in _STRING.findall(_PLACE.sub("", line))}
        found |= {one for one in literals if not _harmless(one)}
    for one in (text, *environ.values()):
        for user in _USER.findall(one):
            found |= {part for told in user[:-1].split(":") for part in (told, unquote(told))}
    for name, told in environ.items():
        if _SECRET_NAMES.search(name) and len(told) >= 8 and not told.startswith("/") and not told.islower():
            found.add(told)
    return frozenset(secret for one in found if len(secret := one.strip()) >= 6)


def _harmless(told: str) -> bool:
    """A word of ours behind a misspelt key, which must not go from all texts."""
    return told in library.names(None) or quantity.find(told) is not None or told in available_timezones()


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(SECRET_BYTES).decode("utf-8", "replace").strip()
    except (OSError, ValueError):
        return ""


# --- what the gateway knows -----------------------------------------------------------------------------------------


def _status(site: _Site, serials: set[str]) -> Any:
    running = site.ask("/api/v1/status")
    if site.app is not None:
        serials |= {meter.serial for meter in site.app.meters if meter.serial}
    if running is not None:
        return running
    if site.app is None:
        raise HeliographError("the gateway is not running, and without a configuration its store says little", hint="")
    with closing(site.app.reader()) as store:
        for meter in store.readings.meters():
            serials |= {one for one in (store.readings.serial(meter),) if one}
        one = site.app
        return as_json(health(one.config.settings.site.id, one.meters, store, one.clock, one.rules))


def _backlog(site: _Site) -> Any:
    with closing(app.reader(site.data_dir)) as store:
        meters = site.app.meters if site.app is not None else ()
        rows, blocked = waiting(meters, store, None, None, None, clock.SystemClock().now())
        return {"rows": len(rows), "shown": rows[:ROWS], "blocked": [str(one) for one in blocked]}


def _events(site: _Site, serials: set[str]) -> Any:
    with closing(app.reader(site.data_dir)) as store:
        for meter in store.readings.meters():
            known = [store.readings.serial(meter)]
            for seam in store.seams.all(meter):
                known += [seam.old_serial, seam.new_serial]
            serials |= {one for one in known if one}
        return store.journal.events(EVENTS)


def _frames(site: _Site, serials: set[str] | None) -> str:
    """`serials` that are known already, to be masked; None: none is."""
    told = site.ask("/api/v1/frames")
    if told is None:
        return "The gateway did not answer: it is not running, or hangs. What was said on its lines is not known.\n"
    hidden = set() if serials is None else serials | set(told["serials"])
    if serials is not None:
        serials |= hidden
    lines = ["What was last said on each line, seconds before now: > was sent, < came."]
    if hidden:
        lines.append("The words of a serial number are masked, so the checksum behind them does not fit.")
    for bus, frames in told["frames"].items():
        lines.append(f"\n{bus}: {', '.join(f'{count} {name}' for name, count in told['counts'][bus].items())}")
        for sent, pieces in groupby(frames, key=lambda one: bool(one["sent"])):
            some = list(pieces)
            whole = b"".join(bytes.fromhex(one["hex"]) for one in some)
            whole = whole if sent else _without(whole, hidden)  # a number may have come in pieces
            for one in some:
                size = len(one["hex"]) // 2
                lines.append(f"{-one['ago']:10.3f} {'>' if sent else '<'} {whole[:size].hex(' ')}")
                whole = whole[size:]
    return "\n".join(lines) + "\n"


def _maps(site: _Site) -> Any:
    names = {path.stem for path in site.local.glob("*.toml")} if site.local.is_dir() else set()
    if site.app is not None:
        names |= {loaded.map.name for loaded in site.app.maps}
    else:
        names |= set(re.findall(r"^\s*map\s*=\s*[\"']([a-z0-9.-]+)[\"']", site.text, re.MULTILINE))
    found = library.found(site.local)
    rows: list[dict[str, Any]] = []
    for name in sorted(names):
        if name not in found:
            rows.append({"name": name, "problems": ["there is no such map"]})
            continue
        loaded, problems = library.check(found[name], site.local)
        map = loaded.map if loaded is not None else None
        rows.append(
            {
                "name": name,
                "from": "shipped" if found[name].parent == library.shipped_dir() else "local",
                "digest": loaded.digest if loaded is not None else None,
                "version": map.version if map is not None else None,
                "status": map.status if map is not None else None,
                "extends": map.extends if map is not None else None,
                "problems": [str(problem) for problem in problems],
            }
        )
    return rows


# --- the computer ---------------------------------------------------------------------------------------------------


def _versions() -> Any:
    packages = {}
    for name in sorted({re.split(r"[ ;<>=!~\[]", one)[0] for one in metadata.requires("heliograph") or ()}):
        with suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', _content(Path("/etc/os-release")), re.MULTILINE))
    return {
        "heliograph": __version__,
        "python": sys.version.split("\n", maxsplit=1)[0],
        "sqlite": sqlite3.sqlite_version,
        "packages": packages,
        "system": release.get("PRETTY_NAME", platform.system()),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "board": _content(Path("/proc/device-tree/model")).strip("\0") or "unknown",
    }


def _system(site: _Site) -> Any:
    folder = site.data_dir
    now = clock.SystemClock()
    memory = dict(re.findall(r"^(Mem\w+|Swap\w+): +(\d+) kB", _content(Path("/proc/meminfo")), re.MULTILINE))
    return {
        "clock": {
            "now": now.now(),
            "kernel_synchronised": clock.kernel_synchronised(),
            "since_boot_s": round(now.since_boot()),
            "zone": time.tzname,
        },
        "disk": _disk(folder),
        "files": _files(folder),
        "memory_kb": {name: int(size) for name, size in memory.items()},
        "load": os.getloadavg(),
        "temperature": _content(Path("/sys/class/thermal/thermal_zone0/temp")),
        "user": {"uid": os.getuid(), "groups": os.getgroups()},
        "serial_ports": sorted(
            f"{path} -> {path.resolve()}" if path.is_symlink() else str(path)
            for where in (
                "/dev/serial/by-id/*",
                "/dev/serial/by-path/*",
                "/dev/ttyUSB*",
                "/dev/ttyACM*",
                "/dev/ttyAMA*",
            )
            for path in Path("/").glob(where.lstrip("/"))
        ),
        "gateway": {
            "socket": (folder / "heliograph.sock").exists(),
            "holds_the_store": holder(folder / "lock", _content(Path("/proc/locks"))),
        },
        "networks": sorted(name for _, name in socket.if_nameindex()),
    }


def holder(lock: Path, locks: str) -> int | None:
    """The process that has the store, by /proc/locks alone: one that hangs holds it and answers nobody."""
    try:
        found = lock.stat()
    except OSError:
        return None
    where = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    match = re.search(rf"FLOCK +ADVISORY +WRITE +(\d+) +{where} ", locks)
    return int(match[1]) if match else None


def _disk(folder: Path) -> Any:
    there = next((one for one in (folder, *folder.parents) if one.exists()), Path("/"))
    usage = shutil.disk_usage(there)
    mounts = [line.split()[:4] for line in _content(Path("/proc/mounts")).splitlines() if len(line.split()) > 3]
    below = [one for one in mounts if there.is_relative_to(one[1])]
    return {
        "folder": folder,
        "exists": folder.exists(),
        "total_mb": usage.total // 1_000_000,
        "free_mb": usage.free // 1_000_000,
        "mount": max(below, key=lambda one: len(one[1]), default=None),
    }


def _files(folder: Path) -> Any:
    """Names and sizes: what SQLite keeps beside its file, copies, what was put into quarantine."""
    found: dict[str, int | str] = {}
    for path in sorted(folder.rglob("*"))[:200] if folder.is_dir() else ():
        with suppress(OSError):
            if path.is_file():
                found[str(path.relative_to(folder))] = path.stat().st_size
    if folder.is_dir() and FILE not in found:
        found[FILE] = "not there"
    return found


def _service() -> str:
    """What systemd knows of the service, and the end of its log."""
    state = "ActiveState,SubState,Result,ExecMainStatus,NRestarts,ExecMainStartTimestamp,MemoryCurrent,CPUUsageNSec"
    return "\n".join(
        f"$ {' '.join(words)}\n{_run(words)}"
        for words in (
            ["systemctl", "show", UNIT, "-p", state],
            ["journalctl", "-u", UNIT, "-n", str(LOG_LINES), "--no-pager", "-o", "short-iso"],
        )
    )


def _run(words: Sequence[str]) -> str:
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"}
    try:
        done = subprocess.run(
            words, capture_output=True, env=environment, stdin=subprocess.DEVNULL, timeout=15, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"not to be had here: {error}\n"
    return (done.stdout + done.stderr).decode("utf-8", "replace")


# --- what must not be in it -----------------------------------------------------------------------------------------


def _clean(text: str) -> str:
    """Without anything that has the shape of a token, whosesoever it is."""
    for shape, instead in _TOKENS:
        text = shape.sub(instead, text)
    return text


def _named(texts: Iterable[str]) -> set[str]:
    """Serial numbers that our own messages name; those of a stranger stand nowhere else."""
    found = {one for text in texts for match in _SERIALS.finditer(text) for one in match.groups() if one}
    return {one for one in found if any(letter.isdecimal() for letter in one)}


def _no_serials(serials: Iterable[str]) -> Callable[[str], str]:
    known = sorted({one.lstrip("0") for one in serials if len(one.lstrip("0")) >= 5}, key=len, reverse=True)
    shapes = [(re.compile(rf"(?<![0-9A-Za-z])0*{re.escape(one)}(?![0-9A-Za-z])"), _masked(one)) for one in known]

    def hide(text: str) -> str:
        for shape, instead in shapes:
            text = shape.sub(instead, text)
        return text

    return hide


def _masked(serial: str) -> str:
    return pattern(serial.encode()).decode("ascii", "replace")


def _without(data: bytes, serials: Iterable[str]) -> bytes:
    """Bytes of a line without these serial numbers, as text or as a number in any order of its words."""
    for serial in serials:
        pairs = [(serial.encode(), _masked(serial).encode())]
        if serial.isdecimal() and 4 <= len(serial) <= 18:
            number, other = int(serial), int(_masked(serial))
            for size in (4, 8):
                if max(number, other) < 1 << (8 * size) and (size == 4 or number >= 1 << 32):
                    pairs += zip(_orders(number, size), _orders(other, size), strict=True)
            digits = serial.zfill(len(serial) + len(serial) % 2)
            pairs.append((bytes.fromhex(digits), bytes.fromhex(_masked(digits))))
            if number < 1 << 24:
                pairs.append((struct.pack(">f", number), struct.pack(">f", float(other % (1 << 24)))))
        for wanted, instead in pairs:
            if len(wanted) >= 4:
                data = data.replace(wanted, instead[: len(wanted)].ljust(len(wanted), b"\0"))
    return data


def _orders(number: int, size: int) -> list[bytes]:
    raw = number.to_bytes(size, "big")
    words = [raw[n : n + 2] for n in range(0, size, 2)]
    swapped = [word[::-1] for word in words]
    return [raw, b"".join(reversed(words)), b"".join(swapped), b"".join(reversed(swapped))]


# --- texts ----------------------------------------------------------------------------------------------------------


def _json(value: Any) -> str:
    def plain(one: Any) -> Any:
        if isinstance(one, datetime):
            return one.isoformat().replace("+00:00", "Z")
        if isinstance(one, date | Path):
            return str(one)
        return repr(one)

    return json.dumps(value, default=plain, ensure_ascii=False, indent=1) + "\n"


def _cut(text: str) -> str:
    if len(text) <= MOST:
        return text
    return f"{text[: MOST // 2]}\n... {len(text) - MOST} characters were left out here ...\n{text[-MOST // 2 :]}"


WHAT = {
    "check.txt": "whether the configuration can be used, and what is wrong with it",
    "config.toml": "the configuration, line by line; secrets, comments and serial numbers left out, position rounded",
    "status.json": "what heliograph status says, with what happened on each bus",
    "backlog.json": "days that no platform has confirmed, and all that was tried with them",
    "events.json": f"the newest {EVENTS} entries of the journal",
    "frames.txt": "the last bytes on each line",
    "maps.json": "the maps in use and the local ones: digest, status, problems",
    "maps/": "the texts of local maps",
    "versions.json": "versions of the program, its libraries, the system, and which computer it is",
    "system.json": "clock, disk, memory, files in data_dir, serial ports",
    "service.txt": "what systemd says of the service, and the end of its log",
}


def _readme(parts: Mapping[str, str], missing: Mapping[str, str], serials: bool, secrets: int) -> str:
    lines = ["What support needs to see of this gateway. Plain texts: look through them before you send them."]
    lines += ["", "What is in it:"]
    for name in parts:
        what = WHAT.get(name, WHAT["maps/"] if name.startswith("maps/") else "")
        lines.append(f"  {name:<16} {len(parts[name]):>7}  {what}")
    lines += ["", "What could not be had:"] if missing else []
    lines += [f"  {name}: {words}" for name, words in missing.items()]
    numbers = "were wanted and are in it." if serials else "read 1234567890..."
    return (
        "\n".join(lines)
        + f"""

What was left out on purpose:
  Tokens, passwords and logins. {secrets} were found here, and every text was searched for each of them, as it is and in
  base64, hex and URL form. Secrets that only the service may read were not looked for; no part is made of them.
  Comments of the configuration, names of variables, users and passwords in addresses.
  Serial numbers of meters: they {numbers}
  The readings (heliograph export makes a pack of those), the store itself, its signing key.

Addresses of this network and names of serial adapters are in it: they are what is asked for first.
"""
    )
