"""Alerts and dashboard: each speaks of metrics and labels that the gateway has, and promtool follows each rule."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from heliograph.core.shown import Sample
from tests.fakes import START
from tests.outputs.test_metrics import HEALTH, METERS, running, shown

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/heliograph.rules.yml"
CASES = ROOT / "deploy/prometheus/heliograph.test.yml"
WORDS = ROOT / "deploy/prometheus/README.md"
DASHBOARD = ROOT / "deploy/grafana/heliograph.json"

# What Prometheus itself adds: to each sample, and of its own.
ADDED = {"job", "instance"}
OWN = {"up": ADDED, "ALERTS": {*ADDED, "alertname", "alertstate", "severity"}}
SELECTOR = re.compile(r"\b(heliograph_[a-z_]+|process_[a-z_]+|up|ALERTS)\b(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
GROUPED = re.compile(r"\b(?:by|on|group_left|group_right)\s*\(([^)]*)\)")


@pytest.fixture(scope="module")
def page() -> Mapping[str, list[dict[str, str]]]:
    """Every metric with the labels of each of its samples, of a gateway that knows everything."""
    with running() as output:
        for meter in METERS:
            output.sample(Sample(meter, START, {"active_power": 1.0}, took=0.1))
        output.picture(HEALTH, ())
        found: dict[str, list[dict[str, str]]] = {}
        for name in shown(output):
            metric, _, labels = name.partition("{")
            found.setdefault(metric, []).append({key: value for key, _, value in MATCHER.findall(labels)})
    return found


def objections(expression: str, page: Mapping[str, list[dict[str, str]]]) -> list[str]:
    """What this expression asks for and no gateway has."""
    found, known = [], set(ADDED)
    selected = list(SELECTOR.finditer(expression))
    for metric, matchers in ((one[1], one[2]) for one in selected):
        if metric not in page and metric not in OWN:
            found.append(f"there is no {metric}")
            continue
        labels = {key for sample in page.get(metric, []) for key in sample} | ADDED | OWN.get(metric, set())
        known |= labels
        for label, how, value in MATCHER.findall(matchers or ""):
            values = {sample.get(label, "") for sample in page.get(metric, [])}
            if label not in labels:
                found.append(f"{metric} has no label {label}")
            elif label in {"state", "class", "verdict", "quality", "night"} and not how.startswith("!"):
                found += [f"{metric}: no {label} is {one}" for one in value.split("|") if one not in values | FIXED]
    for group in GROUPED.findall(expression):
        found += [f"nothing here has a label {one}" for one in re.split(r"[,\s]+", group.strip()) if one not in known]
    if not selected:
        found.append("asks for nothing")
    return found


# Of maps that the picture of these tests does not have.
FIXED = {"silent", "zeros"}


def rules() -> Iterator[dict[str, Any]]:
    """Enough of YAML for this file: key, value, and expressions of several lines."""
    rule: dict[str, Any] = {}
    key, depth = "", 0
    for line in RULES.read_text(encoding="utf-8").splitlines():
        text = line.split(" #")[0].strip() if line.strip().startswith(("- alert", "for", "severity")) else line.strip()
        indent = len(line) - len(line.lstrip())
        if not text or text.startswith("#"):
            continue
        if text.startswith("- alert:"):
            if rule:
                yield rule
            rule = {}
            text = text.removeprefix("- ")
        if rule or text.startswith("alert:"):
            if key and indent > depth:
                rule[key] = f"{rule[key]} {text}".strip()
                continue
            name, _, value = text.partition(":")
            key, depth = (name, indent) if value.strip() == ">-" else ("", 0)
            rule[name] = "" if key else value.strip()
    yield rule


def expressions() -> Iterator[tuple[str, str]]:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            inner = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert inner is not None
            yield variable["name"], f"sum by ({inner[2]}) ({inner[1]})"
    for note in dashboard["annotations"]["list"]:
        if "expr" in note:
            yield note["name"], note["expr"]


def test_every_alert_asks_for_what_the_gateway_has(page: Mapping[str, list[dict[str, str]]]) -> None:
    asked = {rule["alert"]: objections(rule["expr"], page) for rule in rules()}
    assert len(asked) > 20
    assert {name: found for name, found in asked.items() if found} == {}


def test_every_panel_asks_for_what_the_gateway_has(page: Mapping[str, list[dict[str, str]]]) -> None:
    asked = [(title, objections(expression, page)) for title, expression in expressions()]
    assert len(asked) > 30
    assert [one for one in asked if one[1]] == []


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("heliograph_clock_ofset_seconds > 1", "there is no heliograph_clock_ofset_seconds"),
        ('heliograph_meter_state{stat="ok"}', "heliograph_meter_state has no label stat"),
        ('heliograph_meter_state{state="dubious"}', "no state is dubious"),
        ("sum by (metre) (heliograph_meter_state)", "nothing here has a label metre"),
        ('sum(rate(heliograph_modbus_errors_total{class=~"timeout|noise"}[5m]))', "no class is noise"),
        ("vector(1)", "asks for nothing"),
    ],
)
def test_a_slip_of_the_pen_is_found(page: Mapping[str, list[dict[str, str]]], expression: str, told: str) -> None:
    assert told in "; ".join(objections(expression, page))


def test_each_metric_is_of_use_to_somebody(page: Mapping[str, list[dict[str, str]]]) -> None:
    """On the dashboard or in a rule; what neither needs should not be there."""
    used = " ".join([*(rule["expr"] for rule in rules()), *(expression for _, expression in expressions())])
    idle = {name for name in page if name.startswith("heliograph_") and not re.search(rf"\b{name}\b", used)}
    assert idle == {
        "heliograph_poll_duration_seconds_sum",  # come with the buckets
        "heliograph_poll_duration_seconds_count",
        "heliograph_today_watthours",  # what people compare with a display
    }


def test_every_alert_says_what_it_is_and_what_to_do_next() -> None:
    words = WORDS.read_text(encoding="utf-8")
    for rule in rules():
        assert rule["severity"] in ("critical", "warning", "info"), rule["alert"]
        for key in ("summary", "description", "next_step"):
            assert rule[key].startswith('"') and len(rule[key]) > 20, (rule["alert"], key)
        assert f"`{rule['alert']}`" in words, "deploy/prometheus/README.md lists every alert"


def test_the_words_beside_it_name_every_metric(page: Mapping[str, list[dict[str, str]]]) -> None:
    rows = "".join(line for line in WORDS.read_text(encoding="utf-8").splitlines() if line.startswith("|"))
    told = set(re.findall(r"`(heliograph_[a-z_]+)`", rows))
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in page if name.startswith("heliograph_")}
    assert told == shown


def test_every_verb_that_an_alert_names_exists() -> None:
    from heliograph.cli import VERBS

    named = {
        verb for rule in rules() for verb in re.findall(r"heliograph ([a-z]+)", rule["next_step"] + rule["summary"])
    }
    assert {"status", "doctor", "backlog"} <= named <= set(VERBS) | {"finds"}


def test_the_dashboard_is_laid_out_and_asks_its_own_datasource() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    assert dashboard["schemaVersion"] >= 39 and "id" not in dashboard and "__inputs" not in dashboard
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        mine = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24 and not mine & cells, panel["title"]
        cells |= mine
        assert panel["title"]
        for part in (panel, *panel.get("targets", [])) if panel["type"] != "row" else ():
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
    assert [one["name"] for one in dashboard["templating"]["list"]] == ["datasource", "job", "instance"]
    assert dashboard["templating"]["list"][0]["type"] == "datasource"


needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None and not os.environ.get("CI"),  # there it has to be installed
    reason="promtool is not installed: apt install prometheus",
)


def promtool(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run(["promtool", *words], cwd=cwd, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@needs_promtool
def test_promtool_follows_each_alert_through_its_cases() -> None:
    assert promtool("check", "rules", RULES.name, cwd=RULES.parent) == ""
    assert promtool("test", "rules", CASES.name, cwd=CASES.parent) == ""
    cases = CASES.read_text(encoding="utf-8")
    assert [rule["alert"] for rule in rules() if rule["alert"] not in cases] == []


@needs_promtool
def test_an_alert_that_is_never_raised_is_found_out(tmp_path: Path) -> None:
    text = RULES.read_text(encoding="utf-8")
    (tmp_path / RULES.name).write_text(text.replace("heliograph_clock_trusted == 0", "heliograph_clock_trusted == 2"))
    cases = CASES.read_text(encoding="utf-8")
    head, (case,) = cases.partition("tests:")[0], re.findall(r"(?s)  - name: the clock\n.*?(?=\n  - name)", cases)
    (tmp_path / CASES.name).write_text(f"{head}tests:\n{case}\n")
    assert "HeliographClockNotTrusted" in promtool("test", "rules", CASES.name, cwd=tmp_path)
