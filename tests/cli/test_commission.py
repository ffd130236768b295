"""commission on the command line: what is printed, what is asked, what stands in the report."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import structlog
from click.testing import CliRunner, Result

from heliograph import library
from heliograph.cli import heliograph
from heliograph.cli.commission import _end
from heliograph.core.commissioning import Check
from heliograph.core.errors import HeliographError
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.rehearsal.sandbox_redex_rules import Inverter
from heliograph.rehearsal.server import Server
from heliograph.rehearsal.sun import Sky

SINGAPORE = ZoneInfo("Asia/Singapore")
NOON = datetime(2026, 3, 14, 4, tzinfo=UTC) - timedelta(seconds=time.monotonic())
ANSWERS = ("--answer", "roof.display=yes", "--answer", "sun=yes", "--answer", "time=yes")

CONFIG = """
[site]
id = "sg-0042"
timezone = "{zone}"
data_dir = "{folder}/data"
[[bus]]
id = "rs485"
url = "{bus}"
timeout = "2s"
pause = "1ms"
[[meter]]
id = "roof"
bus = "rs485"
map = "eastron-sdm630"
rated_kw = 5000
serial = "23451234"
report_as = {{ redex = "STR1" }}
[uplink.redex]
base_url = "{platform}"
token = {{ file = "{folder}/token" }}
[clock]
trust = "always"
"""


def midday() -> str:
    """A zone in which it is about noon, whenever this test runs: by night nobody could be green."""
    hours = 12 - datetime.now(UTC).hour
    return f"Etc/GMT{-hours:+d}" if hours else "Etc/UTC"


def sunny() -> datetime:
    """Noon, going on with the machine's clock. The plant is so large that its counter moves between any two reads."""
    return NOON + timedelta(seconds=time.monotonic())


@pytest.fixture(autouse=True)
def _logs_of_others() -> Iterator[None]:
    """The verb sets logs up for its whole process, which it shares here with other tests."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with ExitStack() as stack:
        stack.enter_context(_site(tmp_path, None))
        yield tmp_path / "config.toml"


@pytest.fixture
def turned(tmp_path: Path) -> Iterator[Path]:
    with ExitStack() as stack:
        stack.enter_context(_site(tmp_path, (1, 2, -3)))
        yield tmp_path / "config.toml"


def _site(folder: Path, cts: tuple[int, ...] | None) -> ExitStack:
    stack = ExitStack()
    meter = SimulatedMeter(
        library.load("eastron-sdm630", local=None).map,
        clock=sunny,
        rated_kw=5000,
        serial=23_451_234,
        start_export_wh=41_230_700,
        sky=Sky(SINGAPORE, seed=5),
        cts=cts,
    )
    server = stack.enter_context(Server({1: meter}))
    sandbox = stack.enter_context(
        Sandbox(lambda: datetime.now(UTC), token="t0ken", inverters=[Inverter("STR1", capacity_kw=5000)])
    )
    (folder / "token").write_text("t0ken")
    (folder / "data").mkdir()
    text = CONFIG.format(zone=midday(), folder=folder, bus=server.url, platform=sandbox.url)
    (folder / "config.toml").write_text(text)
    return stack


def run(config: Path, *words: str) -> Result:
    return CliRunner().invoke(heliograph, ["--config", str(config), "commission", *words], standalone_mode=False)


def code(result: Result) -> int:
    if isinstance(result.exception, HeliographError):
        return result.exception.exit_code
    if result.exception is not None:
        raise result.exception
    return int(result.return_value)


def test_a_green_site_says_so_and_exits_0(site: Path) -> None:
    found = run(site, *ANSWERS)
    assert code(found) == 0, found.output
    assert re.search(r"Green: all \d\d checks are in order\.", found.output)
    assert re.search(r"✓ direction +energy_export rises while the sun shines", found.output)
    assert "t0ken" not in found.output


def test_without_a_terminal_nobody_is_asked_and_that_is_told(site: Path) -> None:
    found = run(site, "--answer", "sun=yes")
    assert code(found) == 1
    assert re.search(r"\? display +Nobody has compared 412\d\d\.\d{3} kWh with the display", found.output)
    assert "--answer roof.display=yes" in found.output
    assert re.search(r"\? zone +Nobody has confirmed", found.output)


def test_a_turned_transformer_is_on_the_list_with_what_to_do(turned: Path) -> None:
    found = run(turned, *ANSWERS)
    assert code(found) == 1
    assert "The current transformer of L3 is turned round" in found.output
    assert re.search(r"\d\. roof, transformers: Turn L3 round", found.output)


def test_json_holds_checks_figures_and_words(site: Path) -> None:
    found = json.loads(run(site, "--json", "--by", "Ada", *ANSWERS).stdout)
    assert found["green"] is True and found["by"] == "Ada" and found["site"] == "sg-0042"
    assert {check["result"] for check in found["checks"]} == {"green"}
    (meter,) = found["meters"]
    assert meter["serial"] == "23451234" and meter["map_status"] == "documented" and len(meter["map_digest"]) == 64
    (export,) = [one for one in meter["figures"] if one["quantity"] == "energy_export"]
    assert len(export["words"]) == 2 and export["value"] > 41_230_700


class Page(HTMLParser):
    """Everything that could fetch something, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.outside += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.outside += [tag] * (tag in ("script", "link", "iframe", "object", "img"))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_one_file_to_print_and_sign(turned: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    assert code(run(turned, "--by", "<Ada> & Bob", "--report", str(report), *ANSWERS)) == 1
    written = report.read_text()
    page = Page()
    page.feed(written)
    assert page.outside == [] and "url(" not in written and "@import" not in written
    assert "Commissioned by <Ada> & Bob" in page.text and "<Ada>" not in written
    for part in ("sg-0042", "23451234", "What is left to be done", "Turn L3 round", "eastron-sdm630", "Place and date"):
        assert part in page.text
    digest = library.load("eastron-sdm630", local=None).digest
    assert digest in page.text
    assert re.search(r"energy_export</span><b>\d+\.\d{3} kWh</b><code>[0-9A-F]{4} [0-9A-F]{4}</code>", written)
    assert "t0ken" not in written


def test_nothing_but_checks_is_printed_and_no_line_ends_in_blanks(site: Path) -> None:
    config = site.read_text()
    site.write_text(config.replace('map = "eastron-sdm630"', 'map = "eastron-sdm72d-m"').replace('serial = "', '# "'))
    found = run(site, *ANSWERS)
    assert code(found) == 1
    assert "device_refused" not in found.output and "[info" not in found.output
    lines = found.output.splitlines()
    assert len(lines) > 10
    assert [line for line in lines if line != line.rstrip()] == []


def test_two_need_attention_and_one_needs_it(capsys: pytest.CaptureFixture[str]) -> None:
    one = Check("identity", "roof", "attention", "It is odd.", "Look.")
    _end([one, one], None)
    assert "0 of 2 checks are in order; 2 need attention:" in capsys.readouterr().out
    _end([one], None)
    assert "; 1 needs attention:" in capsys.readouterr().out


@pytest.mark.parametrize("words", [(), ("--json",)], ids=["terminal", "json"])
def test_who_stops_it_is_told_how_far_it_came_and_gets_no_report(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    def pressed(*_: object) -> Check:
        raise KeyboardInterrupt

    monkeypatch.setattr("heliograph.core.commissioning.display", pressed)
    found = run(site, "--report", str(tmp_path / "report.html"), *words, *ANSWERS)
    assert code(found) == 130
    assert "Stopped before the end" in found.stderr and "no report was written" in found.stderr
    assert not (tmp_path / "report.html").exists()
    if words:
        assert found.stdout == ""
    else:
        assert re.search(r"So far:\n\d of \d checks are in order", found.stdout)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--answer", "barn.display=yes"], "answers no question"),
        (["--answer", "roof.display=maybe"], "is no answer"),
        (["--answer", "roof.inverter-kw=much"], "is not a number"),
        (["--watch", "30"], "--watch 30"),
        (["--report", "/nowhere/at/all.html"], "--report"),
        (["bran"], "there is no meter bran"),
    ],
)
def test_what_cannot_be_meant_is_refused(site: Path, words: list[str], told: str) -> None:
    found = run(site, *words)
    assert isinstance(found.exception, HeliographError)
    assert told in found.exception.message
