from __future__ import annotations

import hashlib
import json
import re
import shutil
import tomllib
from decimal import Decimal
from pathlib import Path

import jsonschema
import pytest

from heliograph import library
from heliograph.core import quantity
from heliograph.core.decode import Absent, addresses, reading, value, width
from heliograph.core.errors import ConfigError
from heliograph.core.registers import Match, Register
from tests.test_recordings import unrecorded

METERS = Path(__file__).parents[1] / "meters"
SHIPPED = (
    "abb-b23-b24",
    "carlo-gavazzi-em24-e1",
    "carlo-gavazzi-em24-rs485",
    "carlo-gavazzi-em340",
    "chint-dtsu666",
    "deye-hybrid-1p",
    "deye-hybrid-3p",
    "deye-string-micro",
    "eastron-sdm120",
    "eastron-sdm220",
    "eastron-sdm230",
    "eastron-sdm54",
    "eastron-sdm630",
    "eastron-sdm630mct",
    "eastron-sdm660",
    "eastron-sdm72d-m",
    "eastron-sdm72dm-v2",
    "eastron-x96-1a",
    "foxess-h1-h3-holding",
    "foxess-h1-input",
    "fronius-datamanager-site",
    "fronius-inverter-float",
    "goodwe-dt-new",
    "goodwe-dt-old",
    "goodwe-et",
    "growatt-legacy",
    "growatt-mic-mid-max-tlx",
    "growatt-tlxh-mod-min",
    "huawei-smartlogger",
    "huawei-sun2000",
    "janitza-b23-umg96",
    "janitza-umg604",
    "kostal-plenticore",
    "schneider-iem3155",
    "shelly-pro-3em",
    "siemens-pac2200",
    "sma-core2",
    "sma-sunny",
    "sofar-g3",
    "sofar-hyd-old",
    "sofar-string-old",
    "solaredge",
    "solax-hybrid-gen3-5",
    "solax-mic-gen1",
    "solax-x3-hybrid-gen3-5",
    "solis-hybrid",
    "solis-string",
    "sungrow-sg",
    "sungrow-sg-hires",
    "sungrow-sh",
    "sunspec-inverter",
    "sunspec-inverter-float",
    "sunspec-meter",
    "sunspec-meter-float",
    "sunspec-mppt",
)

GOOD = """\
name      = "a-meter"
products  = ["A Meter"]
source    = "a sheet"
version   = "2026-08-31"
status    = "documented"
function  = "input"
max_words = 80
fallback_words = [60, 10]
read_gaps = true
no_gap    = [[0x100, 0x1FF]]
production = "energy_export"
timing.pause = "60ms"
identity.serial = "serial_number"
identity.match = [{ address = 0xFC02, type = "u16", values = [112] }]
registers = [
  { address = 0x0048, quantity = "energy_import", type = "float32", unit = "kWh", monotonic = true },
  { address = 0x004A, quantity = "energy_export", type = "float32", unit = "kWh", monotonic = true },
  { address = 0x0156, quantity = "energy_total", type = "float32", unit = "kWh", monotonic = false },
  { address = 0x0000, quantity = "voltage_l1n", type = "u16", unit = "V", scale = 0.1, times = ["vt_ratio"] },
  { address = 0x0001, quantity = "vt_ratio", type = "u16", function = "holding" },
  { address = 0x0010, quantity = "model", type = "text", words = 8, poll = false },
  { address = 0x0020, quantity = "active_power", type = "s16", unit = "W", scale_register = 0x21 },
  { address = 0x0021, quantity = "a_sf", type = "sunssf", poll = false },
  { address = 0xFC00, quantity = "serial_number", type = "u32", poll = false },
]
vectors = [
  { quantity = "energy_import", words = [0x47F1, 0x2064], value = 123456.78, origin = "synthetic" },
  { quantity = "energy_export", words = [0x3C23, 0xD70A], value = 0.01, origin = "synthetic" },
  { quantity = "voltage_l1n", words = [2301], value = 230.1, with = { vt_ratio = 1 }, origin = "synthetic" },
  { quantity = "active_power", words = [0xFFFF], value = -10, scale_exponent = 1, origin = "synthetic" },
]
""".replace("[[0x100, 0x1FF]]", "[[0x0200, 0x02FF]]")


def write(folder: Path, text: str = GOOD, name: str = "a-meter") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


# --- shipped maps ---------------------------------------------------------------------------------------------------


def test_the_shipped_maps_are_those_that_are_promised() -> None:
    assert library.names(local=None) == SHIPPED


def test_every_shipped_map_has_a_recording() -> None:
    assert unrecorded(SHIPPED) == [], "run: python -m tests.test_recordings NAME"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_map_has_no_problem_at_all(name: str) -> None:
    loaded, problems = library.check(library.find(name, None), None)
    assert [str(problem) for problem in problems] == []
    assert loaded is not None
    assert library.load(name, local=None).map == loaded.map


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_map_fits_the_schema_that_editors_use(name: str) -> None:
    text = (METERS / f"{name}.toml").read_text()
    assert text.startswith("#:schema ./map.schema.json\n")
    jsonschema.validate(tomllib.loads(text), library.map_schema())


def test_the_shipped_schema_is_the_generated_one() -> None:
    assert (METERS / "map.schema.json").read_text() == library.schema_text(), (
        "run: heliograph map schema > meters/map.schema.json"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        GOOD.replace("float32", "float23", 1),
        GOOD.replace('"60ms"', "60"),
        GOOD.replace("address", "adress", 1),
        GOOD.replace("registers = [", "not_registers = ["),
        GOOD.replace('status    = "documented"', ""),
        GOOD.replace('unit = "kWh"', 'unit = "kwh"', 1),
        GOOD.replace("scale = 0.1", 'scale = "0.1"'),
    ],
)
def test_the_schema_refuses_what_the_checker_refuses(wrong: str) -> None:
    jsonschema.validate(tomllib.loads(GOOD), library.map_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tomllib.loads(wrong), library.map_schema())


def test_the_sdm630_has_its_86_documented_inputs_and_reads_20_of_them_in_every_round() -> None:
    m = library.load("eastron-sdm630", local=None).map
    inputs = [r for r in m.registers if m.function_of(r) == "input"]
    assert len(inputs) == 86
    assert all(r.type == "float32" and m.order_of(r) == "ABCD" for r in inputs)
    # 15 runs and 172 registers: the sums that the maker's tables give
    taken = sorted(address for r in inputs for address in addresses(r))
    assert len(taken) == 172
    assert sum(before + 1 != after for before, after in zip([-9, *taken], taken, strict=False)) == 15
    assert [r.quantity for r in m.registers if m.function_of(r) == "holding"] == [
        "system_type",
        "serial_number",
        "meter_code",
        "software_version",
    ]
    assert {r.quantity for r in m.registers if r.poll} == {
        *(f"{what}_l{phase}" for what in ("current", "active_power", "power_factor") for phase in (1, 2, 3)),
        *(f"voltage_l{phase}n" for phase in (1, 2, 3)),
        *("active_power", "apparent_power", "reactive_power", "power_factor", "frequency"),
        *("energy_import", "energy_export", "energy_total"),
    }
    assert m.timing.pause == 0.06
    assert (m.max_words, m.fallback_words) == (80, (60, 40, 10, 2))
    assert m.identity.match == (Match(address=0xFC02, function="holding", type="u16", values=(112, 121)),)


def test_no_sum_or_resettable_counter_may_be_production() -> None:
    for name in SHIPPED:
        m = library.load(name, local=None).map
        if name != "sunspec-mppt":  # its inputs count direct current, which no site should take for production
            assert m.production in ("energy_export", "energy_production")  # a meter's, an inverter's
        for r in m.registers:
            # dc_input_total is one counter, of all the inputs of an inverter together
            if re.search("(?<!dc_input_)total|net|resettable|_t[12]$|_today$|_hour$|_month$|_year$", r.quantity):
                assert not library.may_be_production(r), (name, r.quantity)


def test_the_sdm660_is_an_unverified_sdm630() -> None:
    m, parent = library.load("eastron-sdm660", None).map, library.load("eastron-sdm630", None).map
    assert m.status == "unverified"
    assert m.registers == parent.registers
    assert m.vectors == parent.vectors
    assert m.identity.match == ()
    assert m.identity.serial == "serial_number"
    text = (METERS / "eastron-sdm660.toml").read_text()
    assert "accept_unverified_map" in text


def test_an_em24_with_ethernet_is_an_em340_in_the_right_application() -> None:
    m, parent = library.load("carlo-gavazzi-em24-e1", None).map, library.load("carlo-gavazzi-em340", None).map
    assert m.registers[:-1] == parent.registers
    assert m.identity.match == (Match(address=0xA000, function="holding", type="u16", values=(7,)),)
    assert m.identity.required
    assert (m.identity.serial, parent.identity.match) == ("serial_number", ())


@pytest.mark.parametrize("name", ["eastron-sdm220", "eastron-sdm54", "eastron-sdm630mct"])
def test_a_map_without_a_sheet_of_the_maker_delivers_nothing_by_itself(name: str) -> None:
    m = library.load(name, None).map
    assert (m.status, m.read_gaps) == ("unverified", False)
    text = (METERS / f"{name}.toml").read_text()
    assert "accept_unverified_map" in text


def test_the_readme_explains_every_key() -> None:
    text = (METERS / "README.md").read_text()
    schema = library.map_schema()
    keys = {*schema["properties"], *(key for part in schema["$defs"].values() for key in part.get("properties", {}))}
    assert not {key for key in keys if f"`{key}`" not in text}


# --- finding and reading ---------------------------------------------------------------------------------------------


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as error:
        library.load("eastron-smd630", local=None)
    assert error.value.message == 'there is no map "eastron-smd630"'
    assert error.value.hint == 'Did you mean "eastron-sdm630"?'


def test_a_local_map_wins_and_may_extend_the_one_it_hides(tmp_path: Path) -> None:
    shipped = library.load("eastron-sdm120", tmp_path)
    own = 'name = "eastron-sdm120"\nextends = "eastron-sdm120"\nproducts = ["mine"]\nsource = "me"\n'
    write(tmp_path, own + 'version = "2026-09-01"\nstatus = "documented"\nmax_words = 60\nfallback_words = [2]\n'
          'timing.timeout = "1.5s"\n', "eastron-sdm120")  # fmt: skip
    local = library.load("eastron-sdm120", tmp_path)
    assert local.path == tmp_path / "eastron-sdm120.toml"
    assert local.map.max_words == 60
    assert local.map.registers == shipped.map.registers
    assert (local.map.timing.timeout, local.map.timing.pause) == (1.5, 0.06)
    assert local.digest != shipped.digest


def test_what_extends_replaces_registers_of_the_same_quantity_and_their_vectors(tmp_path: Path) -> None:
    write(tmp_path)
    child = write(
        tmp_path,
        'name = "child"\nextends = "a-meter"\nproducts = ["B"]\nsource = "b"\nversion = "2026-09-01"\n'
        'status = "unverified"\nregisters = [\n'
        '  { address = 0x0300, quantity = "energy_import", type = "u32", unit = "Wh", monotonic = true },\n'
        '  { address = 0x0300, quantity = "frequency", type = "u16", unit = "Hz" },\n'
        "]\n",
        "child",
    )
    loaded, problems = library.check(child, tmp_path)
    assert loaded is not None
    quantities = [r.quantity for r in loaded.map.registers]
    assert sorted(quantities) == sorted({*quantities})
    assert quantities[-2:] == ["energy_import", "frequency"]
    assert [v.quantity for v in loaded.map.vectors] == ["energy_export", "voltage_l1n", "active_power"]
    assert [str(problem).split(". ")[0] for problem in problems] == [
        f"{child}:8: energy_import may be production and has no vector",
        f"{child}:9: frequency overlaps energy_import ({child}:8) at 0x0300",
    ]


def test_a_map_of_the_other_word_order_takes_over_everything_but_the_vectors_that_show_the_order(
    tmp_path: Path,
) -> None:
    write(tmp_path)
    head = 'name = "child"\nextends = "a-meter"\nproducts = ["B"]\nsource = "b"\nversion = "2026-09-01"\n'
    head += 'status = "documented"\norder = "CDAB"\n'
    child = write(tmp_path, head, "child")
    loaded, problems = library.check(child, tmp_path)
    assert loaded is not None
    m, parent = loaded.map, library.load("a-meter", tmp_path).map
    assert (m.order, m.registers) == ("CDAB", parent.registers)
    # One word is the same in both orders; two are not, and an energy counter without a vector is no finished map.
    assert [v.quantity for v in m.vectors] == ["voltage_l1n", "active_power"]
    assert [problem.message for problem in problems] == [
        *(f"{name} may be production and has no vector" for name in ("energy_import", "energy_export")),
        "energy_total is polled, but no vector shows how float32 CDAB is read",
    ]
    own = """vectors = [
  { quantity = "energy_import", words = [0x2064, 0x47F1], value = 123456.78, origin = "synthetic" },
  { quantity = "energy_export", words = [0xD70A, 0x3C23], value = 0.01, origin = "synthetic" },
]
"""
    loaded, problems = library.check(write(tmp_path, head + own, "child"), tmp_path)
    assert loaded is not None and [str(problem) for problem in problems] == []
    assert library.from_texts(loaded.digest, texts_of(loaded)) == loaded.map


@pytest.mark.parametrize(
    ("order", "kept"),
    [
        ("ABCD", ["energy_import", "energy_export", "voltage_l1n", "active_power"]),
        ("CDAB", ["energy_export", "voltage_l1n", "active_power"]),
        ("BADC", ["energy_export", "active_power"]),  # 0xFFFF is the same either way round
        ("DCBA", ["energy_export", "active_power"]),
    ],
)
def test_vectors_go_only_where_their_own_words_would_differ(tmp_path: Path, order: str, kept: list[str]) -> None:
    at = '{ address = 0x004A, quantity = "energy_export", '
    write(tmp_path, GOOD.replace(at, at + 'order = "ABCD", '))  # a register with an order of its own keeps it
    own = 'name = "child"\nextends = "a-meter"\nproducts = ["B"]\nsource = "b"\nversion = "2026-09-01"\n'
    child = write(tmp_path, own + f'status = "documented"\norder = "{order}"\n', "child")
    assert [v.quantity for v in library.read(child, tmp_path).map.vectors] == kept


def test_problems_of_an_inherited_register_are_told_with_the_file_it_stands_in(tmp_path: Path) -> None:
    parent = write(tmp_path, GOOD.replace("0x004A", "0x0048"))
    child = write(
        tmp_path,
        'name = "child"\nextends = "a-meter"\nproducts = ["B"]\nsource = "b"\nversion = "2026-09-01"\n'
        'status = "unverified"\nmax_words = 4\nfallback_words = []\n',
        "child",
    )
    _, problems = library.check(child, tmp_path)
    assert [(problem.place.path, problem.line) for problem in problems] == [(parent, 17), (parent, 21)]
    assert "overlaps energy_import" in problems[0].message
    assert "max_words is 4" in problems[1].message


def test_status_and_source_are_never_inherited(tmp_path: Path) -> None:
    write(tmp_path)
    child = write(tmp_path, 'name = "child"\nextends = "a-meter"\n', "child")
    _, problems = library.check(child, tmp_path)
    assert {p.message for p in problems} == {
        f'this map has no "{key}"' for key in ("products", "source", "version", "status")
    }


@pytest.mark.parametrize(
    ("parent", "said"), [("child", "does not exist"), ("other", "extends it in turn"), ("nobody", "does not exist")]
)
def test_extending_in_a_circle_or_nothing_is_an_error(tmp_path: Path, parent: str, said: str) -> None:
    child = write(tmp_path, f'name = "child"\nextends = "{parent}"\n', "child")
    write(tmp_path, 'name = "other"\nextends = "child"\n', "other")
    _, problems = library.check(child, tmp_path)
    assert said in problems[0].message
    assert problems[0].line == 2


def test_the_digest_is_that_of_the_file_and_covers_what_it_extends(tmp_path: Path) -> None:
    path = write(tmp_path)
    loaded = library.load("a-meter", tmp_path)
    assert loaded.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.text == GOOD
    child = 'name = "child"\nextends = "a-meter"\nproducts = ["B"]\nsource = "b"\nversion = "2026-09-01"\n'
    write(tmp_path, child + 'status = "documented"\n', "child")
    before = library.load("child", tmp_path).digest
    write(tmp_path, GOOD + "# a word more\n")
    assert library.load("child", tmp_path).digest != before


def texts_of(*maps: library.LoadedMap) -> dict[str, tuple[str, str]]:
    return {source.digest: (source.name, source.text) for loaded in maps for source in loaded.sources}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_map_is_made_again_from_its_stored_texts(name: str) -> None:
    loaded = library.load(name, None)
    assert library.from_texts(loaded.digest, texts_of(loaded)) == loaded.map


def test_of_several_parents_of_one_name_the_digest_finds_the_right_one(tmp_path: Path) -> None:
    head = 'products = ["B"]\nsource = "b"\nversion = "2026-09-01"\nstatus = "documented"\n'
    write(tmp_path, f'name = "child"\nextends = "a-meter"\n{head}', "child")
    grandchild = write(tmp_path, f'name = "grandchild"\nextends = "child"\n{head}', "grandchild")
    made = []
    for shift in ("0x0048", "0x0148"):
        write(tmp_path, GOOD.replace("0x0048", shift))
        made.append(library.read(grandchild, tmp_path))
    first, second = made
    assert [source.name for source in first.sources] == ["grandchild", "child", "a-meter"]
    texts = texts_of(second, first)
    assert len(texts) == 6  # the child's text is one, its two parents make it two maps
    for loaded in made:
        assert library.from_texts(loaded.digest, texts) == loaded.map
    assert first.map != second.map
    for source in first.sources:  # nothing that was stored is too much
        with pytest.raises(ConfigError, match=r"not stored|leads to this digest"):
            library.from_texts(first.digest, {digest: one for digest, one in texts.items() if digest != source.digest})


@pytest.mark.parametrize("name", ["eastron-sdm630", "eastron-sdm660"])
def test_a_stored_text_that_was_changed_is_not_believed(name: str) -> None:
    loaded = library.load(name, None)
    for source in loaded.sources:
        texts = texts_of(loaded) | {source.digest: (source.name, source.text + "# a word more\n")}
        with pytest.raises(ConfigError, match=r"is not the one|leads to this digest"):
            library.from_texts(loaded.digest, texts)


def test_the_maps_of_an_installed_package_lie_beside_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(METERS, tmp_path / "heliograph" / "meters")
    monkeypatch.setattr(library, "__file__", str(tmp_path / "heliograph" / "library.py"))
    assert library.shipped_dir() == tmp_path / "heliograph" / "meters"
    assert library.load("eastron-sdm660", None).path.parent == tmp_path / "heliograph" / "meters"


# --- everything that can be wrong ------------------------------------------------------------------------------------

U64 = (
    '  { address = 0x30, quantity = "energy_production", type = "u64", unit = "Wh", monotonic = true, poll = false },\n'
)


@pytest.mark.parametrize(
    ("old", "new", "at", "said"),
    [
        # form
        ('"A Meter"]', '"A Meter"', "", 'is not TOML: Expected "]"|is not TOML: Unclosed array'),
        ("max_words = 80", "max_words = 80\nmax_words = 70", "max_words = 70", "is not TOML: Cannot overwrite a value"),
        ('status    = "documented"\n', "", 'name      = "a-meter"', 'this map has no "status"'),
        ("documented", "documnted", "documnted", '"documnted" is no status. Did you mean "documented"'),
        ("max_words", "max_word", "max_word ", 'unknown key "max_word". Did you mean "max_words"'),
        ("address = 0x004A", "adress = 0x004A", "adress", 'unknown key "adress". Did you mean "address"'),
        ('quantity = "energy_export", type', "type", "0x004A", 'this register has no "quantity"'),
        ("float32", "float23", "float23", '"float23" is no type. Did you mean "float32"'),
        ("0x0048", '"0x0048"', '"0x0048"', 'registers.address: should be a valid integer, not "0x0048"'),
        ("0x0048", "true", "address = true", "registers.address: should be a valid integer, not true"),
        ("monotonic = true", "monotonic = 1", "monotonic = 1", "registers.monotonic: should be a valid boolean, not 1"),
        ("scale = 0.1", "scale = nan", "0x0000", "registers.scale: should be a finite number"),
        ("scale = 0.1", "scale = inf", "0x0000", "registers.scale: should be a finite number"),
        ("[0x0200, 0x02FF]", "[0x0200]", "no_gap", "no_gap: Field required"),
        ('"60ms"', "60", "timing.pause", "pause is no duration: 60. Write it with a unit"),
        ('"60ms"', '"60 parsecs"', "timing.pause", "pause is no duration: 60 parsecs"),
        ("timing.pause", "timing.paus", "timing.paus", r'\[timing\] has an unknown key "paus". Did you mean "pause"'),
        ("identity.serial", "identity.seriel", "seriel", r'\[identity\] .* Did you mean "serial"'),
        ("values = [112]", "value = [112]", "identity.match", 'this match has an unknown key "value"'),
        ("origin", "orgin", "orgin", 'this vector has an unknown key "orgin". Did you mean "origin"'),
        # the map as a whole
        ('"a-meter"', '"b-meter"', "b-meter", 'it calls itself "b-meter", its file "a-meter"'),
        ("2026-08-31", "1.0", "version", 'version "1.0" is no date'),
        ('"a sheet"', '""', "source", "source is empty"),
        ("max_words = 80", "max_words = 126", "max_words", "max_words is 126, not 1 to 125"),
        ("function  =", "port = 0\nfunction  =", "port", "port is 0, not 1 to 65535"),
        ("function  =", "unit = 256\nfunction  =", "unit = 256", "unit is 256, not 0 to 255"),
        ("[60, 10]", "[60, 60]", "fallback", "60 does not come below 60"),
        ("[60, 10]", "[80, 10]", "fallback", "80 does not come below 80"),
        ("[60, 10]", "[60, 2]", "fallback", "model has 8 registers, the last size 2"),
        ("[0x0200, 0x02FF]", "[0x02FF, 0x0200]", "no_gap", "runs from 0x02FF down to 0x0200"),
        ("read_gaps = true", "read_gaps = false", "no_gap", "no_gap without read_gaps has no effect"),
        # where registers lie
        ("address = 0x004A, ", "", '"energy_export", type', "energy_export needs an address"),
        ("address = 0x004A,", "address = 0x004A, addresses = [1, 2],", "0x004A", "energy_export needs an address, or"),
        ("address = 0x004A,", "addresses = [0x4A, 0x4C, 0x4E],", "0x4C", "has 3 addresses, but float32 has 2 words"),
        ("words = 8, ", "", '"model"', "model is text and does not say of how many words"),
        (", words = 8", ", words = 81", '"model"', "model has 81 words; max_words is 80"),
        ('"float32", unit', '"float32", words = 4, unit', "words = 4", "says 4 words, but float32 has 2"),
        ("0x004A", "0xFFFF", "0xFFFF, q", "energy_export does not lie within 0x0000 to 0xFFFF"),
        ("0x004A", "-2", "= -2", "energy_export does not lie within 0x0000 to 0xFFFF"),
        ("0x004A", "0x01FF", "0x01FF", "energy_export lies in 0x0200 to 0x02FF, which no_gap forbids"),
        ("0x004A", "0x0049", "0x0049", r"energy_export overlaps energy_import \(.*a-meter.toml:16\) at 0x0049"),
        ('"energy_total"', '"energy_export"', "0x0156", "energy_export is already on .*a-meter.toml:17"),
        # what they mean
        ('"energy_total"', '"energy_totl"', "0x0156", 'no quantity "energy_totl". Did you mean "energy_total"'),
        ('"energy_total", type = "float32", unit = "kWh"', '"energy_total", type = "float32", unit = "kWH"', "0x0156",
         'no unit "kWH". Did you mean "kWh"'),
        ('"energy_total", type = "float32", unit = "kWh"', '"energy_total", type = "float32", unit = "kW"', "0x0156",
         'energy_total cannot be in "kW". It may be in: Wh, kWh, MWh'),
        ('"energy_total", type = "float32", unit = "kWh"', '"energy_total", type = "float32"', "0x0156",
         'energy_total cannot be in ""'),
        (', monotonic = false', "", "0x0156", "energy_total is a counter and does not say whether it is monotonic"),
        ('type = "s16",', 'type = "s16", monotonic = true,', "0x0020", "active_power is no counter, monotonic has no"),
        ('type = "s16",', 'type = "s16", resettable = "by hand",', "0x0020",
         "active_power is no counter, resettable has no meaning"),
        ('type = "s16",', 'type = "s16", step = 1,', "0x0020", "active_power is no counter, step has no meaning"),
        # numbers
        ('type = "s16",', 'type = "s16", order = "CDAB",', "0x0020", "active_power is one word, CDAB has no meaning"),
        (", words = 8", ', words = 8, order = "DCBA"', "0x0010", "model is text, DCBA has no meaning"),
        (", words = 8", ", words = 8, scale = 2", "0x0010", "model is text; unit, scale"),
        ("scale = 0.1", "scale = 0", "0x0000", "voltage_l1n is scaled by 0"),
        ('type = "s16",', 'type = "s16", absent = [0x10000],', "0x0020", "absent 0x10000 does not fit into 1 words"),
        ('type = "s16",', 'type = "s16", absent = [-1],', "0x0020", "does not fit into 1 words"),
        ('type = "s16",', 'type = "s16", range = [5, 5],', "0x0020", "the range 5 to 5 is empty"),
        ('"vt_ratio"]', '"ct_ratio"]', "0x0000", 'is multiplied by "ct_ratio", which is not in this map. Did you'),
        ("function  =", 'from_site = ["ct_rato"]\nfunction  =', "from_site",
         'no quantity "ct_rato". Did you mean "ct_ratio"'),
        ("scale_register = 0x21", "scale_register = 0x20", "0x20 }", "scaled by 0x0020, which is no sunssf register"),
        ('"sunssf"', '"sunssf", function = "holding"', "0x0020", "scaled by 0x0021, which is no sunssf register"),
        # SunSpec
        ('type = "sunssf"', 'type = "sunssf", model = 103', "0x0021", r"SunSpec model 103, which \[sunspec\] models"),
        ('type = "sunssf"', 'type = "sunssf", repeat = 20', "0x0021", "repeat is the length of a repeated group"),
        # production and identity
        ('"energy_export"\n', '"energy_exprt"\n', "production",
         'is no register of this map. Did you mean "energy_export"'),
        ('"energy_export"\n', '"energy_total"\n', "production",
         "energy_total, which is no monotonic energy counter. It may be: energy_import, energy_export"),
        ('"energy_export"\n', '"voltage_l1n"\n', "production", "voltage_l1n, which is no monotonic energy counter"),
        ('serial = "serial_number"', 'serial = "serial_numbr"', "identity.serial",
         'no register. Did you mean "serial_number"'),
        ("values = [112]", "values = []", "identity.match", "accepts no value at all"),
        ("values = [112]", 'values = ["112"]', "identity.match", "a u16 can never be '112'"),
        ('"u16", values = [112]', '"text", values = ["X"]', "identity.match", "this match is text of no words"),
        ("address = 0xFC02", "address = 0x1FC02", "identity.match", "does not lie within"),
        ("identity.match = [{ address = 0xFC02, type = \"u16\", values = [112] }]", "identity.required = true",
         "identity.required", "identity is required, but nothing is matched"),
        # vectors
        ("0.01", "0.02", "0.02", "energy_export decodes to 0.01 kWh, not to 0.02 kWh"),
        ("0.01", '"absent"', "0x3C23", "energy_export decodes to 0.01 kWh, not to no value"),
        ("[0x3C23, 0xD70A]", "[0x7FC0, 0]", "0x7FC0", "energy_export decodes to not a number, not to 0.01 kWh"),
        ("0x3C23, 0xD70A", "0x3C23", "0x3C23]", "energy_export is 2 words of"),
        ("0x3C23", "0x13C23", "0x13C23", "energy_export is 2 words of"),
        ("with = { vt_ratio = 1 }, ", "", "[2301]", "voltage_l1n decodes to vt_ratio is not known, not to 230.1 V"),
        ("scale_exponent = 1, ", "", "value = -10", "decodes to the scale register holds no value"),
        ('{ quantity = "voltage_l1n", words', '{ quantity = "voltage_l2n", words', "[2301]",
         '"voltage_l2n", which is no register'),
        ('0.01, origin = "synthetic"', "0.01", "0x3C23", "does not say where it comes from"),
        # evidence
        ('  { quantity = "energy_import", words', '  # { quantity = "energy_import", words', "0x0048",
         "energy_import may be production and has no vector"),
        ('  { quantity = "active_power", words', '  # { quantity = "active_power", words', "0x0020",
         "active_power is polled, but no vector shows how s16 ABCD is read"),
        ("registers = [\n", "registers = [\n" + U64, "0x30", "energy_production may be production and has no vector"),
    ],
)  # fmt: skip
def test_each_fault_is_named_with_its_line(tmp_path: Path, old: str, new: str, at: str, said: str) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new, 1) if old != '"energy_export"\n' else GOOD.replace(old, new)
    path = write(tmp_path, text)
    _, problems = library.check(path, tmp_path)
    assert problems, "nothing was found"
    found = [problem for problem in problems if re.search(said, f"{problem.message}. {problem.hint}")]
    assert found, [str(problem) for problem in problems]
    if at:
        expected = next(number for number, line in enumerate(text.splitlines(), 1) if at in line)
        assert found[0].line == expected, (str(found[0]), expected)
    assert str(found[0]).startswith(f"{path}:{found[0].line}: ")


def test_the_good_map_of_these_tests_is_good(tmp_path: Path) -> None:
    _, problems = library.check(write(tmp_path), tmp_path)
    assert [str(problem) for problem in problems] == []


def test_loading_refuses_what_would_read_wrongly_and_tolerates_a_missing_vector(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("0x004A", "0x0049"))
    with pytest.raises(ConfigError) as error:
        library.load("a-meter", tmp_path)
    assert error.value.line == 17
    assert str(error.value).startswith(f"{tmp_path}/a-meter.toml:17: energy_export overlaps energy_import")
    write(tmp_path, GOOD.replace('  { quantity = "energy_import", words', "  # {"))
    assert library.load("a-meter", tmp_path).map.name == "a-meter"


def test_a_file_that_is_no_text_or_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a-meter.toml"
    path.write_bytes(b'name = "a"\nsource = "\xff"\n')
    _, problems = library.check(path, tmp_path)
    assert (problems[0].line, problems[0].message) == (2, "is not UTF-8 text")
    _, problems = library.check(tmp_path / "none.toml", tmp_path)
    assert "No such file" in problems[0].message


# --- what the format can say -----------------------------------------------------------------------------------------

EVERYTHING = """\
name     = "everything"
products = ["An inverter that has every quirk"]
source   = "sheet of the maker V3, page 4, May 2026"     # 16
version  = "2026-08-31"
status   = "confirmed"
function = "holding"
order    = "CDAB"                                          # 2: low word first unless a register says otherwise
unit     = 247                                             # 10
port     = 1502
max_words      = 64                                        # 8
fallback_words = [50, 32]
read_gaps      = true
no_gap         = [[0x7000, 0x7FFF]]
single_client    = true                                    # 9
close_after_poll = true
night      = "silent"                                      # 15
production = "energy_production"                           # 14: a suggestion
from_site  = ["vt_ratio"]                                  # 4: no register holds it

registers = [
  # 1 types
  { address = 0,   quantity = "status",           type = "enum16" },
  { address = 1,   quantity = "event_1",          type = "bitfield32" },
  { address = 3,   quantity = "state_1",          type = "bitfield16" },
  { address = 4,   quantity = "state_2",          type = "enum32" },
  { address = 6,   quantity = "display_timing_bcd", type = "bcd", words = 2, order = "ABCD" },
  { address = 8,   quantity = "model",            type = "text", words = 8 },
  { address = 16,  quantity = "manufacturer",     type = "text", words = 4, order = "BADC" },
  { address = 20,  quantity = "energy_import",    type = "s64", unit = "Wh", monotonic = true },
  { address = 24,  quantity = "energy_export",    type = "float64", unit = "Wh", monotonic = true, order = "ABCD" },
  { address = 28,  quantity = "energy_yield",     type = "u64", unit = "Wh", monotonic = true },
  { address = 32,  quantity = "temperature_internal", type = "s16", unit = "degC", scale = 0.1 },
  # 2 an exception from the order, 5 units and sign
  { address = 33,  quantity = "active_power",     type = "float32", unit = "kW", scale = -1, order = "ABCD" },
  # 3 words that are not adjacent
  { addresses = [78, 80], quantity = "energy_net", type = "u32", unit = "kWh", scale = 0.1, monotonic = false },
  # 4 powers of ten from a register, ratios from a register and from the site
  { address = 35,  quantity = "frequency",        type = "u16", unit = "Hz", scale_register = 36 },
  { address = 36,  quantity = "hz_sf",            type = "sunssf" },
  { address = 37,  quantity = "ct_ratio",         type = "u16" },
  { address = 38,  quantity = "reactive_power",   type = "s32", unit = "kvar", times = ["ct_ratio", "vt_ratio"] },
  # 6 sentinels, NaN, zero that is no value, range; 13 role, resolution, rollover, content
  { address = 40,  quantity = "energy_production", type = "u32", unit = "kWh", scale = 0.1, absent = [0xFFFFFFFF], zero_is_absent = true, range = [0, 1000000], monotonic = true, step = 1, rollover = 429496729.5, contains = "ac+battery", resettable = "a button", source = "page 9", note = "stale until 00:07" },
  # 7 the other function
  { address = 40,  quantity = "voltage_l1n",      type = "u16", unit = "V", scale = 0.1, function = "input" },
  # 8 alone
  { address = 11,  quantity = "options",          type = "u16", function = "input", alone = true, poll = false },
  { address = 90,  quantity = "serial_number",    type = "u32" },
  # 12 relative to a SunSpec model, repeated groups, acc32 and acc64
  { address = 26,  quantity = "energy_total",     type = "acc32", unit = "Wh", order = "ABCD", model = 103, scale_register = 28, monotonic = true, rollover = 4294967295 },
  { address = 28,  quantity = "wh_sf",            type = "sunssf", model = 103 },
  { address = 10,  quantity = "module1_dc_energy", type = "acc64", unit = "Wh", model = 160, repeat = 20, monotonic = true },
]

vectors = [
  { quantity = "status",               words = [4],              value = 4, origin = "captured" },
  { quantity = "event_1",              words = [1, 0],           value = 1, origin = "captured" },
  { quantity = "event_1",              words = [0xFFFF, 0xFFFF], value = "absent", origin = "captured" },
  { quantity = "state_1",              words = [0x8001],         value = 0x8001, origin = "captured" },
  { quantity = "state_2",              words = [7, 0],           value = 7, origin = "captured" },
  { quantity = "display_timing_bcd",   words = [0x1234, 0x5678], value = 12345678, origin = "captured" },
  { quantity = "model",                words = [0x5858, 0x2031, 0x2000, 0, 0, 0, 0, 0], value = "XX 1", origin = "captured" },
  { quantity = "manufacturer",         words = [0x6241, 0x0063, 0, 0], value = "Abc", origin = "captured" },
  { quantity = "energy_import",        words = [0x2345, 1, 0, 0], value = 74565, origin = "captured" },
  { quantity = "energy_export",        words = [0x40F8, 0x6A00, 0, 0], value = 100000, origin = "captured" },
  { quantity = "energy_yield",         words = [0xFFFF, 0xFFFF, 0xFFFF, 0x7FFF], value = 9223372036854775807, origin = "captured" },
  { quantity = "temperature_internal", words = [0xFFF6],         value = -1, origin = "captured" },
  { quantity = "active_power",         words = [0x4020, 0],      value = -2.5, origin = "captured" },
  { quantity = "energy_net",           words = [0x0001, 0x0002], value = 13107.3, origin = "captured" },
  { quantity = "frequency",            words = [5001],           value = 50.01, scale_exponent = -2, origin = "captured" },
  { quantity = "frequency",            words = [5001],           value = "absent", scale_exponent = -11, origin = "captured" },
  { quantity = "hz_sf",                words = [0x8000],         value = "absent", origin = "captured" },
  { quantity = "hz_sf",                words = [0xFFFE],         value = -2, origin = "captured" },
  { quantity = "reactive_power",       words = [3, 0],           value = 180, with = { ct_ratio = 40, vt_ratio = 1.5 }, origin = "captured" },
  { quantity = "energy_production",    words = [41237, 0],       value = 4123.7, origin = "captured" },
  { quantity = "energy_production",    words = [0, 0],           value = "absent", origin = "captured" },
  { quantity = "energy_production",    words = [0xFFFF, 0xFFFF], value = "absent", origin = "captured" },
  { quantity = "energy_production",    words = [0xFFFE, 0xFFFF], value = "absent", origin = "captured" },
  { quantity = "voltage_l1n",          words = [2301],           value = 230.1, origin = "captured" },
  { quantity = "serial_number",        words = [0xD662, 0x0165], value = 23451234, origin = "captured" },
  { quantity = "energy_total",         words = [0, 100],         value = 1000, scale_exponent = 1, origin = "captured" },
  { quantity = "energy_total",         words = [0, 0],           value = "absent", scale_exponent = 1, origin = "captured" },
  { quantity = "module1_dc_energy",    words = [5, 0, 0, 0],     value = 5, origin = "captured" },
]

[timing]                       # 9
pause         = "50 ms"
after_connect = "1.5s"
timeout       = "15s"
min_poll      = "1min"
retries       = 0

[identity]                     # 11
serial   = "serial_number"
required = true
match    = [
  { address = 8,  type = "text", words = 8, values = ["XX 1", "XX 2"] },
  { address = 37, type = "u16", values = [0x20, 0x21], function = "input", order = "BADC" },
]

[sunspec]                      # 12
bases  = [40000, 50000, 0]
models = [103, 160]
"""  # noqa: E501 - one register, one line


def test_a_map_can_say_everything_that_devices_do(tmp_path: Path) -> None:
    path = write(tmp_path, EVERYTHING, "everything")
    loaded, problems = library.check(path, tmp_path)
    assert [str(problem) for problem in problems] == []
    assert loaded is not None
    m = loaded.map
    jsonschema.validate(tomllib.loads(EVERYTHING), library.map_schema())

    def of(name: str) -> Register:
        register = m.register(name)
        assert register is not None
        return register

    used = {r.type for r in m.registers}  # 1
    assert used >= {"enum16", "enum32", "bitfield16", "bitfield32", "bcd", "text", "acc32", "acc64", "s64", "u64"}
    assert m.order_of(of("energy_net")) == "CDAB"  # 2
    assert m.order_of(of("active_power")) == "ABCD"
    assert addresses(of("energy_net")) == (78, 80)  # 3
    assert (of("frequency").scale_register, of("reactive_power").times) == (36, ("ct_ratio", "vt_ratio"))  # 4
    assert m.from_site == ("vt_ratio",)
    assert reading(of("active_power"), "ABCD", (0x4020, 0)) == -2500.0  # 5: kW to W, sign turned
    production = of("energy_production")  # 6, 13
    assert (production.absent, production.zero_is_absent) == ((0xFFFF_FFFF,), True)
    assert production.range == (Decimal(0), Decimal(1_000_000))
    assert (production.step, production.rollover) == (Decimal(1), Decimal("429496729.5"))
    assert (production.contains, production.resettable) == ("ac+battery", "a button")
    assert isinstance(value(production, "CDAB", (0xFFFE, 0xFFFF)), Absent)
    assert m.function_of(of("voltage_l1n")) == "input"  # 7
    assert (m.max_words, m.fallback_words, m.no_gap) == (64, (50, 32), ((0x7000, 0x7FFF),))  # 8
    assert of("options").alone
    t = m.timing  # 9
    assert (t.pause, t.after_connect, t.timeout, t.min_poll, t.retries) == (0.05, 1.5, 15.0, 60.0, 0)
    assert (m.single_client, m.close_after_poll) == (True, True)
    assert (m.unit, m.port) == (247, 1502)  # 10
    assert m.identity.match[0].values == ("XX 1", "XX 2")  # 11
    assert (m.identity.match[1].values, m.identity.required) == ((0x20, 0x21), True)
    assert m.sunspec is not None  # 12
    assert (m.sunspec.bases, m.sunspec.models) == ((40000, 50000, 0), (103, 160))
    assert (of("module1_dc_energy").model, of("module1_dc_energy").repeat) == (160, 20)
    assert m.production == "energy_production"  # 14
    assert m.night == "silent"  # 15
    assert m.source.endswith("May 2026")  # 16
    assert production.source == "page 9"


def test_the_schema_text_is_json_and_names_its_dialect() -> None:
    schema = json.loads(library.schema_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$defs"]["Register"]["properties"]["address"]["description"].startswith("Wire address")


def test_every_quantity_of_a_shipped_map_is_offered_by_editors() -> None:
    offered = set(quantity.names())
    for name in SHIPPED:
        registers = library.load(name, None).map.registers
        assert {r.quantity for r in registers if r.type != "sunssf"} <= offered  # those may be called what one likes


def test_no_shipped_register_is_wider_than_its_smallest_request() -> None:
    for name in SHIPPED:
        m = library.load(name, None).map
        assert max(width(r) for r in m.registers) <= min(m.fallback_words)
