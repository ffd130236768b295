"""The verb years later: another configuration, another map, or nothing but the store."""

from __future__ import annotations

import json
import re
import sqlite3
from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from heliograph import app, library
from heliograph.cli import heliograph
from heliograph.core.errors import ConfigError, HeliographError, StoreError
from heliograph.store.connection import FILE
from tests.work.explained import HELD, MISSING, NORMAL, OPEN, SEAM, SPLIT, week

CONFIG = """
[site]
id = "sg-0042"
timezone = "{zone}"
data_dir = "{data}"
[[bus]]
id = "rs485"
url = "serial:///dev/ttyUSB0?baudrate=9600"
[[meter]]
id = "{meter}"
bus = "rs485"
map = "{map}"
rated_kw = 50
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("week")
    week(folder)
    return folder


def ask(*words: object) -> Result:
    done = CliRunner().invoke(heliograph, ["explain", *map(str, words)], standalone_mode=False)
    if done.exception is not None and not isinstance(done.exception, HeliographError):
        raise done.exception
    return done


def config(
    folder: Path, data: Path, meter: str = "roof", map: str = "eastron-sdm630", zone: str = "Asia/Singapore"
) -> Path:
    path = folder / "config.toml"
    path.write_text(CONFIG.format(data=data, meter=meter, map=map, zone=zone))
    return path


@pytest.mark.parametrize("name", ["eastron-sdm630", "eastron-sdm660"])
def test_a_day_is_explained_the_same_after_its_map_changed_and_its_meter_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    week(tmp_path, name=name)
    then = ask("roof", SEAM, "--json", "--config", config(tmp_path, tmp_path, map=name))
    assert then.return_value == 0
    # The maps move every register and change their names' digests; the meter's place is taken by another one.
    meters = tmp_path / "meters"
    meters.mkdir()
    for path in library.shipped_dir().glob("eastron-sdm6?0.toml"):
        (meters / path.name).write_text(path.read_text().replace("0x004A", "0x014A"))
    monkeypatch.setattr(library, "shipped_dir", lambda: meters)
    assert library.read(library.find(name, None), None).map != library.from_texts(
        (told := json.loads(then.stdout))["maps"][0]["digest"], _texts(tmp_path)
    )
    left = config(tmp_path, tmp_path, meter="barn", map="a-map-that-never-was", zone="Europe/Berlin")
    for words in (["--config", left], ["--data-dir", tmp_path]):
        now = ask("roof", SEAM, "--json", *words)
        assert now.return_value == 0
        assert json.loads(now.stdout) == told
    assert told["closing"]["before"]["decoded"]["addresses"] == [0x4A, 0x4B]
    assert told["maps"][0]["name"] == name


def test_a_start_of_the_gateway_stores_the_maps_with_what_they_extend(tmp_path: Path) -> None:
    site = app.load(config(tmp_path, tmp_path / "data", map="eastron-sdm660"))
    with site.writer():
        pass
    texts = _texts(tmp_path / "data")
    assert sorted(name for name, _ in texts.values()) == ["eastron-sdm630", "eastron-sdm660"]
    assert library.from_texts(site.maps[0].digest, texts) == site.maps[0].map


def _texts(data: Path) -> dict[str, tuple[str, str]]:
    raw = sqlite3.connect(data / FILE)
    found = {digest: (name, text) for digest, name, text in raw.execute("SELECT digest, name, text FROM map")}
    raw.close()
    return found


def test_without_the_stored_text_the_figure_stands_and_the_gap_is_said(tmp_path: Path) -> None:
    week(tmp_path, name="eastron-sdm660")
    raw = sqlite3.connect(tmp_path / FILE)
    raw.execute("PRAGMA foreign_keys=OFF")
    assert raw.execute("DELETE FROM map WHERE name = 'eastron-sdm630'").rowcount == 1
    raw.commit()
    raw.close()
    done = ask("roof", NORMAL, "--data-dir", tmp_path)
    assert done.return_value == 1
    assert "224.372 kWh = 41455.630 - 41231.258" in done.stdout and "4721 EFA1" in done.stdout
    assert "extends eastron-sdm630, and no stored text" in done.stdout and "checks FAIL" in done.stdout


def test_the_text_holds_every_number_from_the_words_to_the_answer(data: Path) -> None:
    text = ask("roof", NORMAL, "--data-dir", data).stdout
    at = 0
    for number in (
        "224.372 kWh = 41455.630 - 41231.258",
        "225.872 kWh = 1.500 + 224.372",
        "4721 0F42",
        "41231.258 kWh",
        "41,231,258 Wh",
        "4721 EFA1",
        "41455.63 kWh",
        "41,455,630 Wh",
        "excluded 01:59:48 UTC, counter 7.340 kWh",
        '"PeriodProductionInKWh":"224.372"',
        "AccumulatedEnergyInKWh 225.872 = 225,872 Wh: the running total",
        "read-back; process 20745",
        "agree with the stored ones",
    ):
        at = text.index(number, at)  # behind the one before
    assert "(14 Mar 23:59:48 local); clock synchronised" in text


def test_a_wrong_meter_or_store_is_answered_with_what_there_is(data: Path, tmp_path: Path) -> None:
    near = ask("rof", NORMAL, "--data-dir", data).exception
    assert isinstance(near, ConfigError) and near.hint == "Did you mean roof?"
    assert isinstance(ask("roof", NORMAL, "--data-dir", tmp_path).exception, StoreError)
    assert isinstance(ask("roof", NORMAL, "--data-dir", data, "--html", "--json").exception, HeliographError)
    assert isinstance(
        ask("roof", NORMAL, "--data-dir", data, "--html", tmp_path / "no" / "x").exception, HeliographError
    )


# -- the page ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Reads a page strictly: every element is closed, in order; scripts and addresses are collected."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[str] = []
        self.words: list[str] = []
        self.asked_for: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.asked_for += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.mark.parametrize("day", [NORMAL, SPLIT, SEAM, HELD, MISSING, OPEN, date(2020, 1, 1)])
def test_the_page_is_whole_and_asks_for_nothing(data: Path, tmp_path: Path, day: date) -> None:
    file = tmp_path / "page.html"
    done = ask("roof", day, "--data-dir", data, "--html", file)
    assert done.exception is None and str(file) in done.stdout
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert page.asked_for == [] and not {"script", "link", "img", "iframe"} & set(page.seen)
    assert not re.search(r"@import|https?://|url\((?!#)", text)
    assert ("svg" in page.seen) == (day.year != 2020)
    assert "@page" in text and f"{day:%A} {day.day} {day:%B %Y}" in page.text
    told = json.loads(ask("roof", day, "--data-dir", data, "--json").stdout)
    for key in ("opening", "closing"):
        for reading in filter(None, (told.get(key, {}).get(side) for side in ("before", "after"))):
            assert " ".join(reading["words"]) in page.text
            assert all(step["how"] in page.text for step in reading["steps"])


def test_the_curve_marks_what_was_excluded_and_where_nobody_read(data: Path) -> None:
    pages = {day: ask("roof", day, "--data-dir", data, "--html").stdout for day in (NORMAL, SPLIT, SEAM)}
    crosses = {day: page.count("l8 8m0 -8l-8 8") for day, page in pages.items()}
    assert crosses == {NORMAL: 2, SPLIT: 0, SEAM: 2}  # one in the picture, one in its legend
    assert {day: page.count('fill="url(#gap)" opacity') for day, page in pages.items()} == {
        NORMAL: 1,
        SPLIT: 1,
        SEAM: 1,
    }
    assert pages[SEAM].count("<circle") == 25 + 1 + 2  # settled readings, their legend, two borders
    assert ">swap</text>" in pages[SEAM] and ">swap</text>" not in pages[SPLIT]


def test_what_meters_and_platforms_say_cannot_write_the_page(tmp_path: Path) -> None:
    week(tmp_path)
    evil = "<script>alert('1')</script>&\"<img src=x onerror=y>"
    raw = sqlite3.connect(tmp_path / FILE)
    raw.execute("UPDATE outbox SET answer = ?, rule = ?, remedy = ?, remote_id = ?, process_id = ?", [evil] * 5)
    raw.execute("UPDATE reading SET doubt = ? WHERE doubt <> ''", [evil])
    raw.execute("UPDATE reading SET function = ?", [evil])
    raw.execute("UPDATE boot SET boot = ?, software = ?", [evil] * 2)
    raw.execute("UPDATE meter SET serial = ?", [evil])
    raw.execute("UPDATE held SET reason = ?", [evil])
    raw.execute("UPDATE event SET text = ?, kind = ?", [evil] * 2)
    raw.execute("UPDATE site SET name = ?", [evil])
    raw.execute("UPDATE map SET name = ?", [evil])
    raw.execute("UPDATE claim SET path = ?", [evil])
    raw.executescript("DROP TRIGGER seam_is_final; DROP TRIGGER day_is_final")
    raw.execute("UPDATE seam SET note = ?, kind = ?, new_serial = ?, old_serial = ?", [evil] * 4)
    raw.execute("UPDATE day SET software = ?", [evil])
    raw.commit()
    raw.close()
    for day in (NORMAL, SEAM, HELD):
        done = ask("roof", day, "--data-dir", tmp_path, "--html")
        assert done.exception is None
        page = Page(done.stdout)
        assert not {"script", "img"} & set(page.seen) and page.asked_for == []
        assert "<script>alert('1')" in page.text
