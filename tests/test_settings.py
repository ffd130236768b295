from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest
from pydantic import BaseModel

from heliograph import app, library, settings
from heliograph.core.errors import ConfigError

ROOT = Path(__file__).parents[1]
GOOD = """[site]
id = "sg-0042"
timezone = "Asia/Singapore"
[[bus]]
id = "rs485"
url = "serial:///dev/ttyUSB0?baudrate=9600&parity=N&stopbits=1"
[[meter]]
id = "roof"
bus = "rs485"
unit = 1
map = "eastron-sdm630"
rated_kw = 50
report_as = { redex = "STR1" }
[uplink.redex]
base_url = "https://uat-api.redex.eco"
token = { file = "/etc/heliograph/redex.token" }
"""
SECOND = '[[meter]]\nid = "barn"\nbus = "rs485"\nunit = 2\nmap = "eastron-sdm630"\nrated_kw = 5\n'


def load(tmp_path: Path, text: str) -> settings.Config:
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    return settings.load(path)


def test_a_good_configuration_is_taken(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD).settings
    assert found.meter[0].report_as == {"redex": "STR1"}
    assert found.close.after.total_seconds() == 900


def test_the_example_is_a_good_configuration(tmp_path: Path) -> None:
    found = load(tmp_path, (ROOT / "config.example.toml").read_text(encoding="utf-8"))
    assert found.settings.site.id == "sg-0042"


@pytest.mark.parametrize(
    ("old", "new", "line", "says", "hint"),
    [
        ("unit = 1", "unitt = 1", 10, r"unknown key meter\[1\].unitt", "Did you mean unit"),
        ("[site]", "[sit]", 1, "unknown key sit", "Did you mean site"),
        ("timezone =", "timezon =", 3, "unknown key site.timezon", "Did you mean timezone"),
        ('timezone = "Asia/Singapore"', 'timezone = "Asia/Singapur"', 3, "no such zone", "Asia/Singapore"),
        ('url = "serial:///dev/ttyUSB0', 'url = "seriel:///dev/ttyUSB0', 6, "address of a bus", ""),
        ("parity=N", "parity=X", 6, "parity", ""),
        ("baudrate=9600", "baudrat=9600", 6, "baudrat", ""),
        ('bus = "rs485"', 'bus = "rs458"', 9, "no bus rs458", "Did you mean rs485"),
        ("rated_kw = 50", "rated_kw = -1", 12, "rated_kw", ""),
        ("rated_kw = 50", "rated_kw = 50\nunit = 2", None, "not TOML", ""),
        ('{ redex = "STR1" }', '{ drec = "STR1" }', 13, "drec, which is not set up", r"\[uplink.drec\]"),
        ('token = { file = "/etc/heliograph/redex.token" }', "", 14, "needs either token or login", "token = "),
        ('{ file = "/etc/heliograph/redex.token" }', '"abc"', 16, "token", ""),
        ('{ file = "/etc/heliograph/redex.token" }', '{ file = "a", env = "b" }', 16, "exactly one", ""),
        ("https://uat-api.redex.eco", "http://uat-api.redex.eco", 15, "plain http", ""),
        ('id = "rs485"', 'id = "rs485"\nevery = "ten"', 6, "not a duration", ""),
        ("[uplink.redex]", "[uplink.redx]", 14, "unknown key uplink.redx", "redex"),
        ("rated_kw = 50\n", "", 7, r"meter\[1\].rated_kw is missing", "config.example.toml"),
    ],
)
def test_a_fault_is_named_with_its_line_and_the_nearest_valid_name(
    tmp_path: Path, old: str, new: str, line: int | None, says: str, hint: str
) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    error = caught.value
    assert error.exit_code == 78
    assert re.search(says, str(error)), str(error)
    assert re.search(hint, error.hint), error.hint
    assert str(tmp_path / "config.toml") in str(error)
    if line is not None:
        assert error.line == line
    assert "abc" not in str(error)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (GOOD + SECOND.replace("barn", "roof"), 18, "roof stands here twice"),
        (GOOD + SECOND + 'report_as = { redex = "STR1" }\n', 23, "both report to redex as STR1"),
        (GOOD + '[[bus]]\nid = "rs485"\nurl = "tcp://10.0.0.1:502"\n', 18, "rs485 stands here twice"),
    ],
)
def test_what_must_be_unique_is(tmp_path: Path, text: str, line: int, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert says in str(caught.value)
    assert caught.value.line == line


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIOGRAPH_SITE__TIMEZONE", "Europe/Berlin")
    assert load(tmp_path, GOOD).settings.site.timezone == "Europe/Berlin"


def test_a_map_is_read_once_however_many_meters_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, load_map = list[str](), library.load

    def reading(name: str) -> library.LoadedMap:
        read.append(name)
        return load_map(name)

    monkeypatch.setattr(library, "load", reading)
    third = SECOND.replace("barn", "gate").replace("unit = 2", "unit = 3").replace("eastron-sdm630", "chint-dtsu666")
    (tmp_path / "config.toml").write_text(GOOD + SECOND + third)
    site = app.load(tmp_path / "config.toml")
    assert [one.map.name for one in site.maps] == [meter.map.name for meter in site.meters]
    assert read == ["eastron-sdm630", "chint-dtsu666"]


def test_a_file_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.load(tmp_path / "config.toml")
    assert "config.example.toml" in caught.value.hint


def _keys(model: type[BaseModel]) -> set[str]:
    found: set[str] = set()
    for name, field in model.model_fields.items():
        found.add(name)
        if (inner := settings._models(field.annotation)) is not None:
            found |= _keys(inner)
    return found


def test_the_example_shows_every_key_with_its_default() -> None:
    text = (ROOT / "config.example.toml").read_text(encoding="utf-8")
    missing = [key for key in sorted(_keys(settings.Settings)) if not re.search(rf"\b{key}\b", text)]
    assert missing == []
    # Uncommented, the commented defaults must be valid values of their keys as well.
    defaults = re.sub(r"(?m)^# ((\[[a-z.]+\]$)|([a-z_]+ *= .*))", r"\1", text)
    shown = tomllib.loads(
        "\n".join(line for line in defaults.splitlines() if not re.match(r"(url|login) .*(tcp|login|env)", line))
    )
    for table in ("close", "clock", "retention"):
        model = settings._models(settings.Settings.model_fields[table].annotation)
        assert model is not None
        assert model.model_validate(shown[table]) == model()


def test_the_schema_for_editors_is_the_models() -> None:
    """Made anew with: heliograph check --schema > deploy/config.schema.json"""
    shipped = json.loads((ROOT / "deploy" / "config.schema.json").read_text(encoding="utf-8"))
    assert shipped == settings.Settings.model_json_schema()
    example = tomllib.loads((ROOT / "config.example.toml").read_text(encoding="utf-8"))
    jsonschema.validate(example, shipped)
    example["site"]["timezon"] = "x"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(example, shipped)


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ('[mqtt]\nurl = "mqtt://a"\nhome_assistant = true', "homeassistant"),
        ('[metrics]\nlisten = "127.0.0.1:8080"\n[web]\ntoken.file = "t"', "both want to listen"),
        (
            '[mqtt]\nurl = "mqtt://a"\nclient_id = "x"\n[sparkplug]\nurl = "mqtt://a"\ngroup = "g"\nclient_id = "x"',
            "x at a",
        ),
    ],
    ids=["home_assistant", "listen", "client_id"],
)
def test_outputs_that_would_stand_in_each_others_way_are_named(tmp_path: Path, tables: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        load(tmp_path, f"{GOOD}\n{tables}\n")
    assert caught.value.line is not None
