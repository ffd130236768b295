"""Cards that fail, as tests need them."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# .ci/run is root; elsewhere these tests have no file system of their own to fill.
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


@contextmanager
def failing(pid: int = 0) -> Iterator[None]:
    """Every write of the process to a file fails, as on a card that is dying: with EFBIG, which SQLite takes like EIO.

    No file may grow beyond a byte, and nothing can be written behind it; pipes and sockets go on.
    """
    kept = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, kept[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, kept)


@contextmanager
def small_card(folder: Path, size: str = "2m") -> Iterator[Path]:
    """A file system of its own, in memory."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "card", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remounted(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def filled(folder: Path) -> Path:
    """Somebody else's file takes all the space there is."""
    path = folder / "somebody-else"
    with path.open("ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)) == 4096:
                pass
        except OSError:
            return path
    return path
