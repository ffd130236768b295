"""What stands in the files: nothing left for later, no place of one machine, a reason beside each exception."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import heliograph

ROOT = Path(__file__).parent.parent
ROOMS = {"src", "tests", "deploy", "systemd", "meters"}
PAGES = {"pyproject.toml", "requirements.lock", "README.md", "config.example.toml", "LICENSE"}
LEFT_BY_TOOLS = {"__pycache__", "build", "dist"}

# Spelt in two parts where this file would find itself.
LATER = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
MACHINE_PATH = re.compile(r"(?<![\w.~*-])/(work|root|Users|home/\w|tmp/\w)[\w./-]*")
ADDRESS = re.compile(r"://|--(extra-)?index-url|--find-links|--trusted-host|@ ?file:")
EXCUSE = re.compile(r"# (?:noqa|type: ignore)\b(?P<codes>:(?: ?[A-Z]+\d+,?)+|\[[a-z, -]+\])?(?P<reason>.*)")


def texts() -> Iterator[tuple[str, str]]:
    """Path below the root, and content, of everything that people wrote."""
    files = [ROOT / name for name in PAGES] + [path for room in (*ROOMS, ".ci") for path in (ROOT / room).rglob("*")]
    for path in sorted(files):
        if path.is_file() and not LEFT_BY_TOOLS & set(path.parts) and not path.name.endswith(".pyc"):
            try:
                yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # saved databases and other bytes


def places(pattern: re.Pattern[str], text: str) -> list[int]:
    return [number for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)]


def excuses_without_reason(text: str) -> list[int]:
    """Lines that silence a checker without naming what exactly, or without saying why."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if (match := EXCUSE.search(line)) and (not match["codes"] or len(match["reason"].strip(" #-")) < 8):
            found.append(number)
    return found


def test_nothing_is_left_for_later() -> None:
    assert [f"{name}:{line}" for name, text in texts() for line in places(LATER, text)] == []


def test_no_file_names_a_path_of_the_machine_it_was_written_on() -> None:
    found = [
        f"{name}:{line}"
        for name, text in texts()
        if name not in ("LICENSE", "tests/test_words.py")
        for line in places(MACHINE_PATH, text)
    ]
    assert found == []


@pytest.mark.parametrize("name", ["requirements.lock", ".ci/run"])
def test_packages_come_from_wherever_the_reader_gets_them(name: str) -> None:
    assert places(ADDRESS, (ROOT / name).read_text()) == []


def test_a_silenced_check_names_itself_and_its_reason() -> None:
    found = [
        f"{name}:{line}"
        for name, text in texts()
        if name.endswith(".py") and name != "tests/test_words.py"
        for line in excuses_without_reason(text)
    ]
    assert found == []


def test_the_top_level_holds_what_the_design_names_and_nothing_else() -> None:
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} - LEFT_BY_TOOLS
    assert found <= ROOMS | PAGES


def requirements() -> Iterator[tuple[Requirement, str]]:
    """Each requirement of pyproject.toml with the line it stands on."""
    text = (ROOT / "pyproject.toml").read_text()
    parsed = tomllib.loads(text)
    groups = [parsed["build-system"]["requires"], parsed["project"]["dependencies"]]
    groups += parsed["project"]["optional-dependencies"].values()
    for requirement in (entry for group in groups for entry in group):
        (line,) = (line for line in text.splitlines() if f'"{requirement}"' in line)
        yield Requirement(requirement), line


def locked() -> dict[str, tuple[str, int]]:
    """Version and number of hashes of each package in the lock."""
    found: dict[str, tuple[str, int]] = {}
    for entry in re.split(r"\n(?=\w)", (ROOT / "requirements.lock").read_text()):
        if match := re.match(r"([\w.-]+)==(\S+)", entry):
            found[canonicalize_name(match[1])] = (match[2], entry.count("--hash=sha256:"))
    return found


def test_every_dependency_has_its_reason_on_its_line() -> None:
    assert [line for _, line in requirements() if len(line.partition("#")[2].strip()) < 8] == []


def test_the_lock_holds_what_pyproject_asks_for() -> None:
    lock = locked()
    for requirement, _ in requirements():
        if requirement.name == "hatchling":  # builds the wheel in an environment of its own, is never installed
            continue
        version, _ = lock[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_every_locked_package_has_a_hash() -> None:
    assert len(locked()) > 30
    assert [name for name, (_, hashes) in locked().items() if not hashes] == []


def test_the_changelog_tells_what_this_version_changes_for_a_site() -> None:
    changelog = (ROOT / "deploy" / "CHANGELOG.md").read_text()
    assert f"## {heliograph.__version__}" in changelog


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (LATER, "x = 1  # TO" + "DO: later"),
        (MACHINE_PATH, 'root = "/' + 'work/main/src"'),
        (MACHINE_PATH, "cd /" + "home/pi/heliograph"),
        (ADDRESS, "--index-url https:" + "//example.org/simple"),
    ],
)
def test_the_patterns_find_what_they_look_for(pattern: re.Pattern[str], line: str) -> None:
    assert places(pattern, line) == [1]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("x()  # type: ignore", [1]),
        ("x()  # type: ignore[arg-type]", [1]),
        ("x()  # type: ignore[arg-type]  # the stub says str, the library takes both", []),
        ("x()  # noqa", [1]),
        ("x()  # noqa: BLE001", [1]),
        ("x()  # noqa: BLE001  the outer edge of a job", []),
        ("x()  # noqa: BLE001, S110 - the outer edge of a job", []),
    ],
)
def test_an_excuse_needs_a_code_and_a_reason(line: str, found: list[int]) -> None:
    assert excuses_without_reason(line) == found
