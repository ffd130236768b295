"""What Prometheus is shown: the values, their names and labels, and a page that no client can disturb."""

from __future__ import annotations

import gc
import gzip
import http.client
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse

from heliograph import app, daemon, library
from heliograph.cli.check import warnings_of
from heliograph.core.answer import Answer
from heliograph.core.delivery import Blocked
from heliograph.core.errors import ConfigError
from heliograph.core.health import Health, MachineHealth, MeterHealth, OutputHealth, ProofHealth, UplinkHealth
from heliograph.core.shown import Sample
from heliograph.outputs import scraped
from heliograph.outputs.metrics import Metrics
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.server import Server
from tests.fakes import START, FakeClock
from tests.outputs.mosquitto import until

METERS = {"roof": "rs485", "carport": "lan"}
OPEN = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
HOUR = timedelta(hours=1)


def a_meter(id: str, **more: Any) -> MeterHealth:
    given: dict[str, Any] = {
        "unit": 1,
        "map": "eastron-sdm630",
        "state": "ok",
        "last_at": START,
        "index_wh": 41_230_700,
        "today_wh": 1_500,
        "total_wh": 41_000_000,
        "last_day": START.date(),
        "last_day_wh": 5_000,
        "doubt": "",
        "error": "",
        "seam": "",
        "proposal": "",
        "night": "answers",
        "total_at": START,
    }
    given |= more
    return MeterHealth(id, METERS[id], **{"rising_wh": given["total_wh"], **given})


HEALTH = Health(
    site="sg-0042",
    timezone="Asia/Singapore",
    software="0.1.0",
    at=START + HOUR,
    running=True,
    clock_trusted=True,
    meters=(
        a_meter("roof"),
        a_meter("carport", state="never read", last_at=None, index_wh=None, today_wh=None, total_wh=None),
    ),
    uplinks=(
        UplinkHealth(
            "redex",
            {"due": 3, "unclear": 1, "accepted": 2, "confirmed": 400, "rejected": 5},
            date(2026, 3, 12),
            "",
            "",
            START + timedelta(days=13),
            aside=4,
            verdicts={"accepted": 7, "due": 2},
        ),
        UplinkHealth("drec", {}, None, "", "", None),
    ),
    held=2,
    missing=1,
    proof=ProofHealth(9, "", "", 0, None, "", ""),
    buses={
        "rs485": {
            "requests": 100,
            "answers": 90,
            "timeouts": 6,
            "garbled": 3,
            "foreign": 2,
            "refused": 1,
            "drained_bytes": 77,
            "echoed": 4,
        }
    },
    outputs=(OutputHealth("mqtt", "mqtt://broker", False, START, "no", 12),),
    alarms=("one", "two"),
    machine=MachineHealth(32_000_000_000, 8_000_000_000, 28_000_000, {"redex": -0.5}),
)


@contextmanager
def running(port: int = 0, **more: Any) -> Iterator[Metrics]:
    made = Metrics("127.0.0.1", port, FakeClock(), "sg-0042", METERS, ("redex", "drec"), **more)
    made.start()
    try:
        until(lambda: made.state().up or bool(made.state().trouble), "it neither listens nor says why not")
        yield made
    finally:
        made.close()


def port(output: Metrics) -> int:
    return int(output.state().where.removesuffix("/metrics").rpartition(":")[2])


def ask(
    output: Metrics, path: str = "/metrics", method: str = "GET", headers: dict[str, str] | None = None
) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port(output), timeout=30)
    connection.request(method, path, headers=headers or {})
    return connection.getresponse()


def shown(output: Metrics) -> dict[str, float]:
    """Every sample as `name{label="value"}`, labels in the order of the alphabet."""
    found = {}
    for family in parse(ask(output).read().decode()):
        for one in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(one.labels.items()))
            found[f"{one.name}{{{labels}}}" if labels else one.name] = one.value
    return found


def test_a_picture_becomes_these_metrics() -> None:
    with running() as output:
        output.picture(HEALTH, ())
        found = shown(output)
    at = START.timestamp()
    wanted: dict[str, float] = {
        'heliograph_build_info{site="sg-0042",version="0.1.0"}': 1,
        "heliograph_picture_timestamp_seconds": at + 3600,
        "heliograph_alarms": 2,
        "heliograph_held_day_figures": 2,
        "heliograph_missing_day_figures": 1,
        "heliograph_clock_trusted": 1,
        "heliograph_storage_healthy": 1,
        'heliograph_clock_offset_seconds{source="redex"}': -0.5,
        "heliograph_disk_size_bytes": 32e9,
        "heliograph_disk_free_bytes": 8e9,
        "heliograph_card_written_bytes_total": 28e6,
        'heliograph_meter_info{bus="rs485",map="eastron-sdm630",meter="roof",night="answers"}': 1,
        'heliograph_meter_state{meter="roof",state="ok"}': 1,
        'heliograph_meter_state{meter="roof",state="stale"}': 0,
        'heliograph_meter_state{meter="carport",state="never read"}': 1,
        'heliograph_meter_last_reading_timestamp_seconds{meter="roof"}': at,
        'heliograph_energy_watthours_total{meter="roof"}': 41_000_000,
        'heliograph_today_watthours{meter="roof"}': 1_500,
        'heliograph_modbus_requests_total{bus="rs485"}': 100,
        'heliograph_modbus_drained_bytes_total{bus="rs485"}': 77,
        'heliograph_modbus_errors_total{bus="rs485",class="timeout"}': 6,
        'heliograph_modbus_errors_total{bus="rs485",class="garbled"}': 3,
        'heliograph_modbus_errors_total{bus="rs485",class="foreign"}': 2,
        'heliograph_modbus_errors_total{bus="rs485",class="refused"}': 1,
        'heliograph_modbus_errors_total{bus="rs485",class="echoed"}': 4,
        'heliograph_outbox_rows{state="due",uplink="redex"}': 3,
        'heliograph_outbox_rows{state="confirmed",uplink="redex"}': 400,
        'heliograph_outbox_rows{state="rejected",uplink="redex"}': 1,
        'heliograph_outbox_rows{state="aside",uplink="redex"}': 4,
        'heliograph_outbox_rows{state="held",uplink="drec"}': 0,
        'heliograph_outbox_backlog_rows{uplink="redex"}': 7,
        'heliograph_outbox_backlog_rows{uplink="drec"}': 0,
        # 12 March began in Singapore on the 11th at 16:00 UTC.
        'heliograph_outbox_oldest_day_timestamp_seconds{uplink="redex"}': at - 2 * 86400,
        'heliograph_uplink_token_expiry_timestamp_seconds{uplink="redex"}': at + 13 * 86400,
        'heliograph_deliveries_total{uplink="redex",verdict="accepted"}': 7,
        'heliograph_deliveries_total{uplink="redex",verdict="due"}': 2,
        'heliograph_deliveries_total{uplink="drec",verdict="rejected"}': 0,
        'heliograph_output_up{output="mqtt"}': 0,
        'heliograph_output_left_out_total{output="mqtt"}': 12,
    }
    assert {name: found.get(name) for name in wanted} == wanted
    assert found["process_resident_memory_bytes"] > 1e6


def test_what_is_not_known_is_absent_and_never_zero() -> None:
    unknown = replace(HEALTH, machine=MachineHealth(), buses={}, outputs=())
    with running() as output:
        before = shown(output)
        output.picture(unknown, ())
        found = shown(output)
    assert not any(name.startswith("heliograph_meter") for name in before), "nothing was seen yet"
    for name in (
        'meter_last_reading_timestamp_seconds{meter="carport"}',
        'energy_watthours_total{meter="carport"}',
        'today_watthours{meter="carport"}',
        'active_power_watts{meter="roof"}',
        "disk_size_bytes",
        "disk_free_bytes",
        "card_written_bytes_total",
        'outbox_oldest_day_timestamp_seconds{uplink="drec"}',
        'uplink_token_expiry_timestamp_seconds{uplink="drec"}',
    ):
        assert f"heliograph_{name}" not in found
    for start in ("clock_offset", "modbus_requests_total", "modbus_errors_total", "output_up"):
        assert not any(name.startswith(f"heliograph_{start}") for name in found)


def test_polls_are_counted_and_timed_and_power_is_only_that_of_the_last_answer() -> None:
    both = replace(HEALTH, meters=(a_meter("roof"), a_meter("carport")))
    with running() as output:
        output.picture(both, ())
        empty = shown(output)
        good = Sample("roof", START, {"active_power": 12_345.5, "energy_export": 1, "model": "x"}, took=0.15)
        for sample in (
            good,
            replace(good, doubt="fell", took=0.25),
            Sample("roof", START, error="no answer", took=2.5),
            Sample("carport", START, error="the line is down"),  # it was not even asked
            Sample("carport", START, {"active_power": 7, "energy_export": 1}, took=0.01, trusted=False),
            Sample("somebody", START, {"active_power": 1}, took=1.0),
        ):
            output.sample(sample)
        assert shown(output) == empty, "what is shown changes with a picture, so that scraping costs the same"
        output.picture(both, ())
        found = shown(output)
        output.sample(replace(good, values={"active_power": "n/a"}))
        output.sample(replace(good, meter="carport", values={"active_power": float("nan")}))
        output.picture(HEALTH, ())
        assert not any("active_power" in name for name in shown(output))
    took = 'heliograph_poll_duration_seconds_bucket{bus="rs485",le="%s"}'
    assert [found[took % le] for le in ("0.1", "0.2", "0.3", "2.0", "5.0", "+Inf")] == [0, 1, 2, 2, 3, 3]
    assert found['heliograph_poll_duration_seconds_sum{bus="rs485"}'] == pytest.approx(2.9)
    assert found['heliograph_poll_duration_seconds_bucket{bus="lan",le="0.02"}'] == 1
    assert found['heliograph_poll_duration_seconds_count{bus="lan"}'] == 1
    assert empty['heliograph_poll_duration_seconds_count{bus="lan"}'] == 0, "a series begins at 0, or its first is lost"
    polls = 'heliograph_polls_total{meter="%s",quality="%s"}'
    for meter, counts in {"roof": (1, 1, 1), "carport": (0, 1, 1)}.items():
        assert tuple(found[polls % (meter, one)] for one in ("good", "uncertain", "bad")) == counts
    assert 'heliograph_active_power_watts{meter="roof"}' not in found, "its last poll brought nothing"
    assert found['heliograph_active_power_watts{meter="carport"}'] == 7
    assert "somebody" not in str(found)


@pytest.mark.parametrize(("state", "watts"), [("ok", 7), ("doubtful", 7), ("stale", None), ("never read", None)])
def test_a_line_that_hangs_shows_no_power(state: str, watts: float | None) -> None:
    """It has no polls that could fail, so its last one was answered."""
    with running() as output:
        output.sample(Sample("roof", START, {"active_power": 7}))
        output.picture(replace(HEALTH, meters=(a_meter("roof", state=state),)), ())
        assert shown(output).get('heliograph_active_power_watts{meter="roof"}') == watts


HOSTILE = 'evil"}\n# TYPE x counter\nx{y="'


def spoiled(health: Health) -> Health:
    """The same picture, with a text of somebody else's in every place that can hold one."""

    def text(value: Any, name: str) -> Any:
        if name in ("id", "bus", "map", "night", "state", "name", "site", "timezone", "software"):
            return value  # of the configuration, or ours
        return f"{HOSTILE}{name}" if isinstance(value, str) else value

    def spoil(one: Any) -> Any:
        fields = type(one).__dataclass_fields__
        return replace(one, **{name: text(getattr(one, name), name) for name in fields})

    blocked = Blocked("redex", "roof", date(2026, 3, 14), HOSTILE, 7, HOSTILE)
    uplinks = [
        replace(
            spoil(one),
            rows={**one.rows, HOSTILE: 1},
            verdicts={**one.verdicts, HOSTILE: 1},
            notes=(HOSTILE,),
            needs=(HOSTILE,),
            stuck=(HOSTILE,),
            waits=(blocked,),
        )
        for one in health.uplinks
    ]
    spoiled: Health = spoil(health)
    return replace(
        spoiled,
        storage=health.storage,
        meters=(*map(spoil, health.meters), replace(health.meters[0], id=HOSTILE)),
        uplinks=(*uplinks, replace(health.uplinks[0], name=HOSTILE)),
        outputs=tuple(map(spoil, health.outputs)),
        buses={**{bus: {**counts, HOSTILE: 9} for bus, counts in health.buses.items()}, HOSTILE: {"requests": 1}},
        alarms=(HOSTILE, HOSTILE),
        proof=spoil(health.proof),
    )


def test_no_label_has_a_value_that_somebody_else_chose() -> None:
    values: dict[str, float | int | str] = {
        "active_power": 1.0,
        "serial_number": HOSTILE,
        "energy_export": 5,
        HOSTILE: 3,
    }
    with running() as output:
        output.picture(HEALTH, ())
        plain = Sample("roof", START, {"active_power": 1.0}, took=0.1)
        output.sample(plain)
        output.picture(HEALTH, ())
        usual = shown(output)
        for sample in (
            Sample("roof", START, error=HOSTILE, took=0.1),
            Sample("roof", START, values, doubt=HOSTILE, took=0.1),
            Sample(HOSTILE, START, values, took=0.1),
        ):
            output.sample(sample)
        output.picture(spoiled(HEALTH), ())
        assert shown(output).keys() == usual.keys()
        for headers in ({}, OPEN):
            page = ask(output, headers=headers).read().decode()
            assert "evil" not in page and "heliograph_polls_total" in page


@pytest.mark.parametrize("headers", [{}, OPEN, {"Accept": "*/*"}, OPEN | {"Accept-Encoding": "gzip"}], ids=str)
def test_the_page_comes_in_the_format_that_was_asked_for(headers: dict[str, str]) -> None:
    with running() as output:
        output.picture(HEALTH, ())
        answer = ask(output, headers=headers)
        body, kind = answer.read(), answer.headers["Content-Type"]
        assert answer.status == 200
        if "Accept-Encoding" in headers:
            assert answer.headers["Content-Encoding"] == "gzip"
            body = gzip.decompress(body)
        if "openmetrics" in headers.get("Accept", ""):
            assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
            families = list(parse_open(body.decode()))  # type: ignore[no-untyped-call]  # it has no types
        else:
            assert kind == "text/plain; version=0.0.4; charset=utf-8"
            families = list(parse(body.decode()))
        assert all(family.documentation for family in families)
        assert {"heliograph_polls", "heliograph_poll_duration_seconds"} <= {family.name for family in families}
        assert ask(output, method="HEAD").read() == b""


def complaints(page: str) -> str:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed: apt install prometheus")
    checked = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False)
    return checked.stdout + checked.stderr if checked.returncode else ""


def test_promtool_accepts_the_page() -> None:
    with running() as output:
        output.picture(HEALTH, ())
        output.sample(Sample("roof", START, {"active_power": 1.0}, took=0.1))
        output.picture(HEALTH, ())
        page = ask(output).read().decode()
    assert complaints(page) == ""
    assert "counter metrics should have" in complaints(page.replace("heliograph_polls_total", "heliograph_polls"))


# Whoever asks


def connect(output: Metrics) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port(output)), timeout=30)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    return made


def said(output: Metrics, request: bytes) -> bytes:
    """All that comes back until it hangs up."""
    with connect(output) as guest:
        guest.sendall(request)
        found = b""
        with suppress(ConnectionResetError):
            while piece := guest.recv(65536):
                found += piece
        return found


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /metrics?name[]=x HTTP/1.0\n\n", 200),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/../../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 404),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", 404),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /metrics SPDY/3\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nx: " + b"y" * 20_000, 431),
        (b"\0" * 20_000, 431),
        (b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=\xff\r\x0b\r\n\r\n", 200),
    ],
    ids=range(13),
)
def test_only_the_page_is_there(request_: bytes, status: int) -> None:
    with running() as output:
        answer = said(output, request_)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert b"Connection: close\r\n" in answer
        assert ask(output).status == 200, "and the next one is answered"


def never_says(output: Metrics, _number: int) -> socket.socket:
    return connect(output)


def half_a_request(output: Metrics, number: int) -> socket.socket:
    guest = connect(output)
    guest.sendall(b"GET /metrics HTTP/1.1\r\nHost: somebody"[: 1 + number % 30])
    return guest


def never_reads(output: Metrics, _number: int) -> socket.socket:
    guest = connect(output)
    guest.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    return guest


def asks_on(output: Metrics, _number: int) -> socket.socket:
    guest = connect(output)
    with suppress(OSError):
        guest.sendall(b"GET /metrics HTTP/1.1\r\n\r\n" * 1000)
    return guest


@pytest.mark.parametrize("hostile", [never_says, half_a_request, never_reads, asks_on], ids=lambda one: one.__name__)
def test_a_hundred_bad_clients_neither_stop_the_good_one_nor_grow_the_gateway(
    hostile: Callable[[Metrics, int], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scraped, "A_SECOND", 1000)
    threads = threading.active_count()
    with running() as output, ExitStack() as guests:
        output.picture(HEALTH, ())
        for number in range(100):
            guests.enter_context(hostile(output, number))
            if number % 10 == 9:
                assert ask(output).status == 200
        assert threading.active_count() == threads + 1
        # What the kernel keeps of ours: the guests that are let in, and no more.
        assert open_ends(output) <= scraped.MOST_GUESTS


def open_ends(output: Metrics) -> int:
    """Connections that our side of the page has not closed (in /proc/net/tcp: established, or waiting for us)."""
    mine = f":{port(output):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return sum(row[1].endswith(mine) and row[3] in ("01", "08") and row[9] != "0" for row in rows)


def test_who_says_nothing_has_to_go_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraped, "WITHIN", 0.05)
    with running() as output, connect(output) as silent, connect(output) as slow:
        slow.sendall(b"GET /metrics")
        assert silent.recv(1) == slow.recv(1) == b""


def test_only_so_many_are_let_in_within_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next ones wait in the kernel for their turn, and get it."""
    monkeypatch.setattr(scraped, "A_SECOND", 3)
    let_in: list[float] = []
    real = scraped._let_in

    def counting(*given: Any) -> bool:
        let_in.append(time.monotonic())
        return real(*given)

    monkeypatch.setattr(scraped, "_let_in", counting)
    with running() as output:
        for _ in range(7):
            assert ask(output).status == 200
    assert len(let_in) == 7
    assert all(later - earlier > 0.9 for earlier, later in zip(let_in, let_in[3:], strict=False))


def test_a_page_that_crashes_is_said_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as output:
        monkeypatch.setattr(output, "_made_anew", lambda *_: 1 / 0)
        assert ask(output).status == 500
        monkeypatch.undo()
        assert ask(output).status == 200


def test_after_ten_thousand_scrapes_no_more_is_held_than_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraped, "A_SECOND", 10**6)
    requests = (
        b"GET /metrics HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text\r\naccept-encoding: gzip\r\n\r\n",
        b"GET /nothing HTTP/1.1\r\n\r\n",
        b"nonsense\r\n\r\n",
    )
    with running() as output:

        def scrape(times: int) -> int:
            for number in range(times):
                if number % 500 == 0:
                    output.picture(HEALTH, ())
                assert said(output, requests[number % 4])
            gc.collect()
            return len(gc.get_objects())

        before = scrape(500)
        after = scrape(10_000)
    assert after - before < 500


# Where it listens


def test_a_port_that_is_taken_is_told_and_taken_when_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraped, "AGAIN", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with running(taken) as output:
            state = output.state()
            assert not state.up and state.where == f"http://127.0.0.1:{taken}/metrics"
            assert f"port {taken} is taken by another program" in state.trouble and "metrics.listen" in state.trouble
            output.sample(Sample("roof", START, {"active_power": 1.0}, took=0.1))
            output.picture(HEALTH, ())
            other.close()
            until(lambda: output.state().up, "it never listens")
            assert output.state().trouble == ""
            assert ask(output).status == 200


@pytest.mark.parametrize(("host", "said"), [("203.0.113.7", "has no address 203.0.113.7 now"), ("::1", "")])
def test_an_address_that_this_computer_has_not_is_told(host: str, said: str) -> None:
    output = Metrics(host, 0, FakeClock(), "s", METERS, ())
    output.start()
    try:
        until(lambda: output.state().up or bool(output.state().trouble), "nothing is told")
        assert said in output.state().trouble
        if not said and output.state().up:
            assert output.state().where.startswith("http://[::1]:")
    finally:
        output.close()


def test_after_its_end_nothing_listens_and_nothing_runs() -> None:
    before = set(threading.enumerate())
    with running() as output:
        where = port(output)
        with connect(output):
            output.close()
            output.close()
    until(lambda: set(threading.enumerate()) <= before, "its thread goes on")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", where), timeout=5)
    never = Metrics("127.0.0.1", 0, FakeClock(), "s", METERS, ())
    never.close()
    never.start()
    assert set(threading.enumerate()) <= before


# How it is set up

CONFIG = """
[site]
id = "sg-0042"
timezone = "Asia/Singapore"
data_dir = "{folder}/data"
[[bus]]
id = "lan"
url = "tcp://127.0.0.1:{bus}"
every = "200ms"
timeout = "50ms"
retries = 0
[[meter]]
id = "roof"
bus = "lan"
map = "eastron-sdm630"
rated_kw = 50
[clock]
trust = "always"
[metrics]
listen = "{listen}"
"""


def a_site(folder: Path, listen: str, bus: int = 1) -> Path:
    config = folder / "config.toml"
    config.write_text(CONFIG.format(folder=folder, listen=listen, bus=bus))
    return config


@pytest.mark.parametrize(
    ("listen", "told"),
    [
        ("127.0.0.1:9464", ""),
        ("localhost:9464", ""),
        ("[::1]:9464", ""),
        ("0.0.0.0:9464", "everybody who reaches this port"),
        ("[::]:9464", "everybody who reaches this port"),
        ("192.168.1.5:9464", "everybody who reaches this port"),
    ],
)
def test_check_says_who_else_can_read_it(tmp_path: Path, listen: str, told: str) -> None:
    site = app.load(a_site(tmp_path, listen), FakeClock(), secrets="must be there")
    warnings = [one for one in warnings_of(site) if "metrics" in one]
    assert len(warnings) == bool(told) and told in "".join(warnings)
    (output,) = site.outputs(lambda _method, _target: Answer(404, b""))
    host = listen.replace("localhost", "127.0.0.1")
    assert output.state().where == f"http://{host}/metrics" and not output.state().up


@pytest.mark.parametrize(
    "listen",
    ["9464", ":9464", "gateway.local:9464", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "::1:9464", "[1.2.3.4]:1"],
)
def test_an_address_that_is_none_is_refused_with_an_example(tmp_path: Path, listen: str) -> None:
    with pytest.raises(ConfigError, match=r"metrics.listen: .*127\.0\.0\.1:9464"):
        app.load(a_site(tmp_path, listen))


def test_where_the_extra_is_not_installed_check_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(app.EXTRAS, "metrics", "no-such-package")
    with pytest.raises(ConfigError) as caught:
        app.load(a_site(tmp_path, "127.0.0.1:9464"), secrets="if they can be seen")
    assert "[metrics] needs the package no-such-package" in str(caught.value)
    assert "pip install 'heliograph[metrics]'" in caught.value.hint and caught.value.line is not None


def test_a_gateway_without_the_section_knows_nothing_of_prometheus(tmp_path: Path) -> None:
    text = a_site(tmp_path, "127.0.0.1:9464").read_text().partition("[metrics]")[0]
    (tmp_path / "config.toml").write_text(text)
    program = (
        "import sys; from pathlib import Path; from heliograph import app, daemon;"
        " site = app.load(Path(sys.argv[1]), secrets='must be there'); assert site.outputs(print) == [];"
        " assert not any(name.startswith('prometheus') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "config.toml")], check=True)


def test_a_running_gateway_is_scraped_and_a_meter_that_dies_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "SHOW_EVERY", timedelta(seconds=0.1))
    monkeypatch.setattr(daemon, "CLOSE_EVERY", timedelta(seconds=0.5))  # the first border begins the running total
    map = library.load("eastron-sdm630", local=None).map
    meter = SimulatedMeter(map, clock=lambda: datetime.now(UTC), start_export_wh=41_230_700)
    with Server({1: meter}) as server, socket.create_server(("127.0.0.1", 0)) as lent:
        listen = f"127.0.0.1:{lent.getsockname()[1]}"
        lent.close()
        site = app.load(a_site(tmp_path, listen, server.port), secrets="must be there")
        with site.writer() as store:
            running = daemon.Daemon(site, store)
            running.start()
            try:
                (output,) = running.audience._outputs
                assert isinstance(output, Metrics)
                until(lambda: output.state().up, output.state().trouble)
                good, bad = (f'heliograph_polls_total{{meter="roof",quality="{one}"}}' for one in ("good", "bad"))
                total = 'heliograph_energy_watthours_total{meter="roof"}'
                until(lambda: shown(output).get(good, 0) > 0 and total in shown(output), "no poll is seen")
                found = shown(output)
                assert found["heliograph_clock_trusted"] == 1 and found[bad] == 0
                assert found['heliograph_poll_duration_seconds_count{bus="lan"}'] >= 1
                assert found["heliograph_disk_free_bytes"] < found["heliograph_disk_size_bytes"]
                assert found["heliograph_card_written_bytes_total"] >= 0
                assert found['heliograph_output_up{output="metrics"}'] == 1
                assert complaints(ask(output).read().decode()) == ""
                server.devices = {}
                until(lambda: shown(output)[bad] > 0, "no poll is seen to fail")
                found = shown(output)
                assert found['heliograph_modbus_errors_total{bus="lan",class="timeout"}'] > 0
                assert 'heliograph_active_power_watts{meter="roof"}' not in found
            finally:
                running.stop()
        assert not output.state().up, "after its end nothing listens"
