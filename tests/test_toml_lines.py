from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.toml_lines import line_of, lines

AWKWARD = '''\
# a comment with [brackets] and key = "value"
top = 1                               # 2
dotted.key."quoted.part" = 2          # 3
"quoted [key]" = 3                    # 4
'literal # key' = "# no comment"      # 5

[site]                                # 7
timezone = "Asia/Singapore"           # 8
text = """
[not.a.table]
key = "no key" \\"""
more""\\"""""                           # one quote of the text and three that close it
after = 1                             # 13
literal = \'\'\'
]] }
\'\'\'
url = "a\\"b"                           # 17

[ uplink . "re dex" ]                 # 19
token = { file = "/a, [b]", "x.y" = [1, 2] }   # 20
when = 1979-05-27 07:32:00            # 21

[[meter]]                             # 23
id = "one"

[meter.limits]                        # 26
low = 1

[[meter]]                             # 29
id = "two"                            # 30
unit = 3                              # 31
[[meter.alias]]                       # 32
name = "a"
[[meter.alias]]                       # 34
name = "b"                            # 35
[meter.alias.deep]                    # 36
x = [                                 # 37
  # a comment, with a comma
  { a = 1, b = [ "x", "}" ] },        # 39

  { a = 2,  b = [
      3, # 42
      4 ] },
]
[last]                                # 45
end = true'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("dotted",), 3),
        (("dotted", "key"), 3),
        (("dotted", "key", "quoted.part"), 3),
        (("quoted [key]",), 4),
        (("literal # key",), 5),
        (("site",), 7),
        (("site", "timezone"), 8),
        (("site", "text"), 9),
        (("site", "after"), 13),
        (("site", "literal"), 14),
        (("site", "url"), 17),
        (("uplink",), 19),
        (("uplink", "re dex"), 19),
        (("uplink", "re dex", "token", "file"), 20),
        (("uplink", "re dex", "token", "x.y", 1), 20),
        (("uplink", "re dex", "when"), 21),
        (("meter",), 23),
        (("meter", 0), 23),
        (("meter", 0, "limits"), 26),
        (("meter", 0, "limits", "low"), 27),
        (("meter", 1), 29),
        (("meter", 1, "unit"), 31),
        (("meter", 1, "alias", 0, "name"), 33),
        (("meter", 1, "alias", 1, "name"), 35),
        (("meter", 1, "alias", 1, "deep"), 36),
        (("meter", 1, "alias", 1, "deep", "x", 0, "b", 1), 39),
        (("meter", 1, "alias", 1, "deep", "x", 1), 41),
        (("meter", 1, "alias", 1, "deep", "x", 1, "b", 0), 42),
        (("last", "end"), 46),
    ],
)
def test_each_value_of_an_awkward_file_is_found_on_its_line(path: tuple[str | int, ...], line: int) -> None:
    tomllib.loads(AWKWARD)  # it is TOML
    assert lines(AWKWARD)[path] == line


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("site", "id"), 7),
        (("meter", 1, "report_as", "redex"), 29),
        (("meter", 7), 23),
        (("nowhere", "at", "all"), None),
        ((), None),
    ],
)
def test_what_is_not_there_is_answered_with_its_nearest_ancestor(path: tuple[str | int, ...], line: int | None) -> None:
    assert line_of(AWKWARD, path) == line


@pytest.mark.parametrize("fault", ["[open", "key", "= 1", 'k = "open', "k = [1, 2", "k = { a = 1", '"\\q" = 1', "k ="])
def test_of_a_broken_file_the_part_above_the_fault_is_known(fault: str) -> None:
    found = lines(f"[site]\nid = 1\n{fault}\n")
    assert found[("site", "id")] == 2


def test_windows_line_ends_count_once() -> None:
    assert line_of("a = 1\r\n\r\n[b]\r\nc = 2\r\n", ("b", "c")) == 4


_KEY = st.text("ab.\"'#[]= é", min_size=1, max_size=4)
_SCALAR = st.one_of(st.integers(), st.booleans(), st.text("ab\"'\\#,]}\n", max_size=6))
_VALUE = st.recursive(
    _SCALAR,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_KEY, inner, max_size=3)),
    max_leaves=8,
)


def _quoted(text: str) -> str:
    return '"' + "".join(f"\\u{ord(c):04X}" if c in '"\\\n' else c for c in text) + '"'


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list):
        return "[ # ]\n" + "".join(f"{_toml(v)}, # }}\n" for v in value) + "]"
    return "{" + ", ".join(f"{_quoted(k)} = {_toml(v)}" for k, v in value.items()) + "}"


@given(st.lists(st.tuples(_KEY, _VALUE), max_size=5))
def test_every_line_known_of_a_generated_file_holds_what_the_parser_sees(rows: list[tuple[str, Any]]) -> None:
    text = "\n".join(f"[[row]]\n{_quoted(key)} = {_toml(value)}" for key, value in rows)
    parsed = tomllib.loads(text)
    found = lines(text)

    def paths(value: Any, path: tuple[str | int, ...]) -> None:
        expected.add(path)
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, inner in items:
            paths(inner, (*path, name))

    expected: set[tuple[str | int, ...]] = set()
    paths(parsed, ())
    assert set(found) == expected - {()}
    all_lines = text.split("\n")
    for number, (key, _) in enumerate(rows):
        assert all_lines[found[("row", number)] - 1] == "[[row]]"
        assert all_lines[found[("row", number, key)] - 1].startswith(_quoted(key))
