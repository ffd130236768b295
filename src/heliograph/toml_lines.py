"""On which line of a TOML file a value stands: the standard library's parser checks the file but forgets the lines."""

from __future__ import annotations

import contextlib
import re
import tomllib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
Path = tuple[str | int, ...]

_BLANK = re.compile(r"[ \t]*")
_TRIVIA = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'  # up to two quotes may stand right before the closing three
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]+")  # a number, a boolean, or a date with a blank in it


class _Lost(Exception):
    """The text is not TOML from here on; what was found before still counts."""


def lines(text: str) -> dict[Path, int]:
    """The 1-based line of every table, key and array element; of a broken file, those above the fault."""
    scanner = _Scanner(text)
    with contextlib.suppress(_Lost):
        scanner.file()
    return scanner.found


def nearest(found: Mapping[Path, T], path: Sequence[str | int]) -> T | None:
    """What is known of `path`, else of its nearest known ancestor, else None."""
    for length in range(len(path), 0, -1):
        if (known := found.get(tuple(path[:length]))) is not None:
            return known
    return None


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """The line of `path` or of its nearest known ancestor, for a single question."""
    return nearest(lines(text), path)


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.starts = [0, *(m.end() for m in re.finditer("\n", text))]
        self.found: dict[Path, int] = {}
        self.elements: dict[Path, int] = {}
        """How many elements each array of tables has so far."""

    def file(self) -> None:
        table: Path = ()
        self.skip(_TRIVIA)
        while self.at < len(self.text):
            if self.take("[["):
                table = self.header("]]", element=True)
            elif self.take("["):
                table = self.header("]", element=False)
            else:
                self.pair(table)
            self.skip(_TRIVIA)

    def header(self, closing: str, *, element: bool) -> Path:
        line = self.line()
        *outer, last = self.key()
        self.expect(closing)
        path: Path = ()
        for part in outer:
            path = self.inside((*path, part), line)
        path = (*path, last)
        if not element:
            return self.inside(path, line)
        self.found.setdefault(path, line)
        index = self.elements.get(path, 0)
        self.elements[path] = index + 1
        self.found[(*path, index)] = line
        return (*path, index)

    def inside(self, path: Path, line: int) -> Path:
        """The table a header speaks of: of an array of tables, its latest element."""
        self.found.setdefault(path, line)
        count = self.elements.get(path, 0)
        return (*path, count - 1) if count else path

    def pair(self, table: Path) -> None:
        line = self.line()
        path = table
        for part in self.key():
            path = (*path, part)
            self.found.setdefault(path, line)
        self.expect("=")
        self.value(path)

    def key(self) -> list[str]:
        """A dotted key, each part bare or quoted."""
        parts: list[str] = []
        while True:
            self.skip(_BLANK)
            if m := _BARE_KEY.match(self.text, self.at):
                parts.append(m.group())
            elif m := _STRING.match(self.text, self.at):
                try:
                    parts.append(tomllib.loads(f"key = {m.group()}")["key"])
                except tomllib.TOMLDecodeError as exc:
                    raise _Lost from exc
            else:
                raise _Lost
            self.at = m.end()
            self.skip(_BLANK)
            if not self.take("."):
                return parts

    def value(self, path: Path) -> None:
        self.skip(_BLANK)
        if self.take("["):
            self.array(path)
        elif self.take("{"):
            self.inline_table(path)
        elif m := _STRING.match(self.text, self.at) or _SCALAR.match(self.text, self.at):
            self.at = m.end()
        else:
            raise _Lost

    def array(self, path: Path) -> None:
        index = 0
        self.skip(_TRIVIA)
        while not self.take("]"):
            self.found[(*path, index)] = self.line()
            self.value((*path, index))
            index += 1
            self.skip(_TRIVIA)
            if not self.take(","):
                self.expect("]")
                return
            self.skip(_TRIVIA)

    def inline_table(self, path: Path) -> None:
        self.skip(_TRIVIA)  # TOML 1.1 allows line breaks here, 1.0 does not; either way we know the line
        while not self.take("}"):
            self.pair(path)
            self.skip(_TRIVIA)
            if not self.take(","):
                self.expect("}")
                return
            self.skip(_TRIVIA)

    def line(self) -> int:
        return bisect_right(self.starts, self.at)

    def skip(self, pattern: re.Pattern[str]) -> None:
        if m := pattern.match(self.text, self.at):
            self.at = m.end()

    def take(self, token: str) -> bool:
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def expect(self, token: str) -> None:
        self.skip(_BLANK)
        if not self.take(token):
            raise _Lost
