"""What can be known of the image without building it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from heliograph.cli import VERBS

ROOT = Path(__file__).parents[2]


def instructions() -> list[tuple[str, str]]:
    """(FROM, python:...), (RUN, pip wheel ...) and so on: comments dropped, continued lines joined."""
    text = "\n".join(line for line in (ROOT / "deploy/Dockerfile").read_text().splitlines() if not line.startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines) if word]


def of(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def test_everything_it_copies_from_the_tree_exists_and_reaches_the_builder() -> None:
    copies = [rest.split() for rest in of("COPY") if not rest.startswith("--from=")]
    copied = {source for *sources, _ in copies for source in sources}
    assert [source for source in copied if not (ROOT / source).exists()] == []
    ignored = (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied != set()


@pytest.mark.parametrize("line", of("RUN"))
def test_every_command_is_well_formed_shell(line: str) -> None:
    subprocess.run(["sh", "-n", "-c", line], check=True)


def test_packages_are_checked_against_the_lock_before_anything_is_installed() -> None:
    fetched, *built, made = of("RUN")[:-1]
    assert "--require-hashes --no-deps --requirement requirements.lock" in fetched
    assert all("--no-deps" in line for line in built)
    assert "install --no-index" in made


def test_the_image_runs_as_its_own_user_on_a_volume() -> None:
    last: list[tuple[str, str]] = []
    for instruction in instructions():
        last = [] if instruction[0] == "FROM" else [*last, instruction]
    assert ("USER", "heliograph") in last
    assert ("VOLUME", "/var/lib/heliograph") in last
    assert all(word != "USER" or user not in ("root", "0") for word, user in last)


@pytest.mark.parametrize("word", ["ENTRYPOINT", "HEALTHCHECK"])
def test_it_starts_verbs_that_exist(word: str) -> None:
    (line,) = of(word)
    found = re.search(r"\[.*\]", line)
    assert found
    program, verb, *_ = json.loads(found[0])
    assert program == "heliograph"
    assert verb in VERBS
