"""Where a new map of the site's own goes, and how it gets there."""

from __future__ import annotations

import os
from pathlib import Path

from heliograph import library
from heliograph.core.errors import ConfigError, UsageError


def place_of_new(name: str, local: Path, *, over: bool) -> Path:
    """The file for a map of that name. A UsageError where the name will not do, or is taken and not to be replaced."""
    path = local / f"{name}.toml"
    if not library.NAME.fullmatch(name):
        raise UsageError(f"{name} cannot be the name of a map", hint="Small letters, digits and hyphens: my-inverter")
    if name in library.names(local=None):
        raise UsageError(
            f"{name} is the name of a map that came with the program",
            hint="Choose another name; to correct a line of it, write a map that extends it (meters/README.md).",
        )
    if path.exists() and not over:
        raise UsageError(f"{path} exists already", hint="Choose another name, or --replace it.")
    return path


ELSEWHERE = "Run it with sudo, or write it elsewhere: heliograph map --local . ..."


def make_folder(path: Path) -> None:
    """The folder of that file, where it is missing: on a fresh machine it is. A ConfigError where it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the folder for it is missing and cannot be made: {error.strerror}", hint=ELSEWHERE, path=path
        ) from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError("its folder takes no file from this user", hint=ELSEWHERE, path=path)


def write(path: Path, text: str) -> None:
    make_folder(path)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", hint=ELSEWHERE, path=path) from error
