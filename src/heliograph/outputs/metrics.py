"""Prometheus: what the newest picture shows, and how long the polls take, at /metrics. The only module that knows
prometheus_client.

The page is made at most once for each picture and format, so scraping touches neither store nor bus, and costs the
same however often it is done. Names and units follow Prometheus' guide with one exception: energy is in Wh, not in
joules. It is Wh on the certificate, in `status` and in every message, so a figure can be compared as it stands; and
Grafana writes Wh as kWh and MWh by itself. Moments are exported, not ages, for whoever asks knows what time it is.

A label's value stands in the configuration or in a list here, never in what a meter or a platform said. What is not
known has no sample; it is never 0.
"""

from __future__ import annotations

import gzip
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import get_args
from zoneinfo import ZoneInfo

import prometheus_client
import structlog
from prometheus_client import metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics

from heliograph import __version__
from heliograph.core.daily import start_of
from heliograph.core.delivery import State
from heliograph.core.health import Health, MeterHealth, MeterState, OutputHealth, UplinkHealth
from heliograph.core.shown import DayFigure, Quality, Sample
from heliograph.outputs.scraped import Made, Page
from heliograph.ports import Clock

log = structlog.get_logger()

PATH = "/metrics"
# A request at 9600 baud takes some 50 ms, a poll of three 220 ms; a time-out with its repeat some seconds.
BUCKETS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
ERRORS = {
    "timeouts": "timeout",
    "garbled": "garbled",
    "foreign": "foreign",
    "refused": "refused",
    "echoed": "echoed",
}
"""What a line counts (ports.BusCounters), as a class of errors."""
QUALITIES: tuple[Quality, ...] = get_args(Quality)
METER_STATES: tuple[MeterState, ...] = get_args(MeterState)
DAY_STATES: tuple[State, ...] = get_args(State)
ASIDE = "aside"
"""Beside the states of core/delivery.py: days among the rejected ones that somebody let go."""


class Metrics:
    """The output (ports.Output). `meters`: the bus of each; `uplinks`: all that there may be."""

    name = "metrics"

    def __init__(
        self, host: str, port: int, clock: Clock, site: str, meters: Mapping[str, str], uplinks: Sequence[str]
    ) -> None:
        self._clock = clock
        self._host = f"[{host}]" if ":" in host else host
        self._page = Page(host, port, PATH, self._made, self._changed)
        self._buses = dict(meters)
        self._lock = threading.Lock()
        self._up, self._trouble = False, ""
        self._since: datetime | None = None
        self._shown: dict[tuple[bool, bool], Made] = {}
        """Of the newest picture, by OpenMetrics or not and gzip or not."""
        metrics.disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, and nobody looks at them
        self._registry = prometheus_client.CollectorRegistry()
        self._took = prometheus_client.Histogram(
            "heliograph_poll_duration_seconds",
            "How long polls of one meter kept their line busy, answered or not.",
            ("bus",),
            registry=self._registry,
            buckets=BUCKETS,
        )
        for bus in set(meters.values()):
            self._took.labels(bus)
        self._seen = Seen(site, meters, uplinks)
        self._registry.register(self._seen)
        prometheus_client.ProcessCollector(registry=self._registry)

    def start(self) -> None:
        self._page.start()

    def sample(self, sample: Sample) -> None:
        bus = self._buses.get(sample.meter)
        if bus is None:
            return
        self._seen.polled(sample)
        if sample.took > 0:  # a line that is down was not kept busy
            self._took.labels(bus).observe(sample.took)

    def picture(self, health: Health, days: Sequence[DayFigure]) -> None:
        del days  # a series for each day would never end; what a day came to is told by the running total
        self._seen.health = health
        self._shown = {}

    def state(self) -> OutputHealth:
        with self._lock:
            where = f"http://{self._host}:{self._page.port}{PATH}"
            return OutputHealth(self.name, where, self._up, self._since, self._trouble)

    def close(self) -> None:
        self._page.close()
        self._changed(False, "")

    def _changed(self, up: bool, why: str) -> None:
        with self._lock:
            told = (self._up, self._trouble)
            if self._since is None or up != self._up:
                self._since = self._clock.now()
            self._up, self._trouble = up, why
        if why and told != (up, why):
            log.warning("output_down", output=self.name, error=why)

    def _made(self, headers: Mapping[str, str]) -> Made:
        """By the page's thread, and by it alone."""
        shown = self._shown
        as_open = "application/openmetrics-text" in headers.get("accept", "")
        small = "gzip" in headers.get("accept-encoding", "")
        if (as_open, small) not in shown:
            shown[as_open, small] = self._made_anew(as_open, small)
        return shown[as_open, small]

    def _made_anew(self, as_open: bool, small: bool) -> Made:
        if as_open:
            kind = "application/openmetrics-text; version=1.0.0; charset=utf-8"
            body = openmetrics.generate_latest(self._registry, version="1.0.0")  # type: ignore[no-untyped-call]  # it has no types
        else:
            kind = prometheus_client.exposition.CONTENT_TYPE_PLAIN_0_0_4
            body = prometheus_client.generate_latest(self._registry)
        headers = {"Content-Type": kind, "Vary": "Accept, Accept-Encoding"}
        return (headers | {"Content-Encoding": "gzip"}, gzip.compress(body, 6)) if small else (headers, body)


class Seen:
    """Makes metrics of the newest picture; a collector as prometheus_client wants it."""

    def __init__(self, site: str, meters: Mapping[str, str], uplinks: Sequence[str]) -> None:
        self.health: Health | None = None
        self._site, self._meters, self._uplinks = site, frozenset(meters), frozenset(uplinks)
        self._buses = frozenset(meters.values())
        self._polls = {(meter, quality): 0 for meter in meters for quality in QUALITIES}
        self._power: dict[str, float] = {}
        """In W, of the meters that answered when they were last asked."""

    def polled(self, sample: Sample) -> None:
        """By the thread of its bus: nobody else counts for this meter."""
        self._polls[sample.meter, sample.quality] += 1
        power = sample.values.get("active_power")
        if isinstance(power, int | float) and math.isfinite(power):
            self._power[sample.meter] = float(power)
        else:
            self._power.pop(sample.meter, None)

    def collect(self) -> Iterator[Metric]:
        version = {"version": __version__, "site": self._site}
        yield InfoMetricFamily("heliograph_build", "The running software, and whose gateway it is.", version)
        polls = CounterMetricFamily(
            "heliograph_polls",
            "Polls since the start: good, uncertain (doubted, or the clock is not trusted) or bad (not answered).",
            labels=("meter", "quality"),
        )
        for (meter, quality), number in self._polls.items():
            polls.add_metric((meter, quality), number)
        yield polls
        if (health := self.health) is not None:
            yield from self._of_site(health)
            yield from _of_buses(health.buses, self._buses)
            yield from self._of_meters([one for one in health.meters if one.id in self._meters])
            yield from _of_uplinks([one for one in health.uplinks if one.name in self._uplinks], health)
            yield from _of_outputs(health.outputs)
            yield from _of_machine(health)

    def _of_site(self, health: Health) -> Iterator[Metric]:
        yield _gauge("picture_timestamp_seconds", "When what is shown here was seen.", health.at.timestamp())
        yield _gauge("alarms", "What needs attention, as heliograph status tells it in words.", len(health.alarms))
        yield _gauge("held_day_figures", "Days whose figure waits for somebody to decide.", health.held)
        yield _gauge("missing_day_figures", "Days without any reading.", health.missing)
        yield _gauge("clock_trusted", "Whether the clock is known to be right.", health.clock_trusted)
        yield _gauge("storage_healthy", "Whether everything is stored that should be.", not health.storage)

    def _of_meters(self, meters: Sequence[MeterHealth]) -> Iterator[Metric]:
        info = InfoMetricFamily(
            "heliograph_meter",
            "What is read with which map on which bus, and whether it answers at night, sends zeros or is silent.",
            labels=("meter",),
        )
        state = _family("meter_state", "1 for the state that the meter is in.", "meter", "state")
        last = _family("meter_last_reading_timestamp_seconds", "When the meter was last read.", "meter")
        power = _family("active_power_watts", "What the meter showed in its last poll, if it answered.", "meter")
        today = _family("today_watthours", "Production since the last local midnight.", "meter")
        total = CounterMetricFamily(
            "heliograph_energy_watthours",
            "Production as it is booked: the running total, baseline included. It goes on when a meter is swapped, and"
            " waits where a correction has lowered it.",
            labels=("meter",),
        )
        for one in meters:
            info.add_metric((one.id,), {"bus": one.bus, "map": one.map, "night": one.night})
            for name in METER_STATES:
                state.add_metric((one.id, name), one.state == name)
            if one.last_at is not None:
                last.add_metric((one.id,), one.last_at.timestamp())
            if one.today_wh is not None:
                today.add_metric((one.id,), one.today_wh)
            if one.rising_wh is not None:
                total.add_metric((one.id,), one.rising_wh)
        silent = {one.id for one in meters if one.state in ("stale", "never read")}  # a line that hangs has no polls
        for meter, watts in list(self._power.items()):
            if meter not in silent:
                power.add_metric((meter,), watts)
        yield from (info, state, last, power, today, total)


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(f"heliograph_{name}", help, value)


def _family(name: str, help: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"heliograph_{name}", help, labels=labels)


def _of_buses(buses: Mapping[str, Mapping[str, int]], known: frozenset[str]) -> Iterator[Metric]:
    requests = CounterMetricFamily("heliograph_modbus_requests", "Requests sent since the start.", labels=("bus",))
    errors = CounterMetricFamily(
        "heliograph_modbus_errors",
        "What went wrong on the line since the start: timeout, garbled, foreign (an answer to another question),"
        " refused, echoed (the line brought a request back).",
        labels=("bus", "class"),
    )
    drained = CounterMetricFamily(
        "heliograph_modbus_drained_bytes", "Bytes nobody asked for, since the start.", labels=("bus",)
    )
    for bus in sorted(known & buses.keys()):
        counts = buses[bus]
        requests.add_metric((bus,), counts.get("requests", 0))
        drained.add_metric((bus,), counts.get("drained_bytes", 0))
        for name, kind in ERRORS.items():
            errors.add_metric((bus, kind), counts.get(name, 0))
    yield from (requests, errors, drained)


def _of_uplinks(uplinks: Sequence[UplinkHealth], health: Health) -> Iterator[Metric]:
    rows = _family("outbox_rows", "Closed days by how far they are on their way.", "uplink", "state")
    backlog = _family("outbox_backlog_rows", "Closed days not confirmed, those that were let go left out.", "uplink")
    oldest = _family(
        "outbox_oldest_day_timestamp_seconds", "When the oldest day began that is not confirmed.", "uplink"
    )
    token = _family(
        "uplink_token_expiry_timestamp_seconds", "When a token ends that a person has to replace.", "uplink"
    )
    verdicts = CounterMetricFamily(
        "heliograph_deliveries",
        "What answers made of days since the start: one for each send of a day, and for each change after it.",
        labels=("uplink", "verdict"),
    )
    zone = ZoneInfo(health.timezone)
    for one in uplinks:
        count = {state: one.rows.get(state, 0) for state in DAY_STATES}
        count["rejected"] -= one.aside
        for state, number in count.items():
            rows.add_metric((one.name, state), number)
            verdicts.add_metric((one.name, state), one.verdicts.get(state, 0))
        rows.add_metric((one.name, ASIDE), one.aside)
        backlog.add_metric((one.name,), one.backlog)
        if one.oldest is not None:
            oldest.add_metric((one.name,), start_of(one.oldest, zone).timestamp())
        if one.token_until is not None:
            token.add_metric((one.name,), one.token_until.timestamp())
    yield from (rows, backlog, oldest, token, verdicts)


def _of_outputs(outputs: Iterable[OutputHealth]) -> Iterator[Metric]:
    up = _family("output_up", "Whether the output is connected, or listens.", "output")
    left_out = CounterMetricFamily(
        "heliograph_output_left_out",
        "Messages that had to make room for newer ones, since the start.",
        labels=("output",),
    )
    for one in outputs:
        up.add_metric((one.name,), one.up)
        left_out.add_metric((one.name,), one.left_out)
    yield from (up, left_out)


def _of_machine(health: Health) -> Iterator[Metric]:
    machine = health.machine
    ahead = _family(
        "clock_offset_seconds",
        "By how much the clock is ahead (behind: negative), by the kernel's word or an uplink's platform's (to half a"
        " second).",
        "source",
    )
    for source, seconds in machine.clock_ahead_s.items():
        ahead.add_metric((source,), seconds)
    yield ahead
    if machine.disk_size_bytes is not None:
        yield _gauge("disk_size_bytes", "Of the file system that data_dir stands on.", machine.disk_size_bytes)
    if machine.disk_free_bytes is not None:
        yield _gauge("disk_free_bytes", "What of that the service may still use.", machine.disk_free_bytes)
    if machine.written_bytes is not None:
        yield CounterMetricFamily(
            "heliograph_card_written_bytes",
            "Handed to the card (block devices) by the gateway since its start.",
            machine.written_bytes,
        )
