"""The only place where concrete classes are chosen: a checked configuration becomes meters, buses, uplinks, store."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import structlog

from heliograph import __version__, library, logs, settings
from heliograph.clock import SystemClock
from heliograph.core.answer import Answer
from heliograph.core.daylight import Position
from heliograph.core.errors import ConfigError, StoreError
from heliograph.core.registers import MeterMap, Order, Timing
from heliograph.core.shown import PastSample
from heliograph.core.site import Meter, Report, spread_offset
from heliograph.ports import Bus, Clock, Output, Uplink
from heliograph.settings import (
    PLATFORMS,
    BrokerSettings,
    BusSettings,
    Config,
    DrecSettings,
    MeterSettings,
    MetricsSettings,
    MqttSettings,
    RedexSettings,
    SparkplugSettings,
    WebSettings,
)
from heliograph.work.change import introduce, meaning
from heliograph.work.close_days import Rules
from heliograph.work.look_back import look_back

if TYPE_CHECKING:
    from heliograph.outputs.broker import Address
    from heliograph.outputs.home_assistant import Farewell, HomeAssistant
    from heliograph.outputs.mqtt import Topics
    from heliograph.store import Store, opening
    from heliograph.uplink import tokens
    from heliograph.uplink.gate import Gate

log = structlog.get_logger()

BROKERS = ("mqtt", "sparkplug")
"""Tables of the configuration that name a broker."""

SHORTEST_TOKEN = 16
"""Characters of the token of [web]: fewer can be guessed."""

DIALECT_KEYS = (
    "path_single",
    "path_batch",
    "path_query",
    "path_status",
    "accumulated_field",
    "send_frequency_type",
    "decimals",
    "value_encoding",
    "max_records",
)


def open_bus(url: str) -> Bus:
    """A bus that no configuration names yet; nothing is opened before the first read."""
    from heliograph.bus import modbus

    return modbus.open_bus(url)


@dataclass(frozen=True)
class App:
    """A site that has been checked and can be run, read or asked about."""

    config: Config
    clock: Clock
    meters: tuple[Meter, ...]
    maps: tuple[library.LoadedMap, ...]
    """The map of each meter, in the same order."""
    rules: Rules

    @property
    def data_dir(self) -> Path:
        return self.config.settings.site.data_dir

    @property
    def socket(self) -> Path:
        """Where a running daemon answers."""
        return self.data_dir / "heliograph.sock"

    def bus_settings(self, bus: str) -> BusSettings:
        return next(one for one in self.config.settings.bus if one.id == bus)

    def open_bus(self, bus: str) -> Bus:
        return open_bus(self.bus_settings(bus).url)

    def uplinks(self, *, remembered: bool = True) -> list[Uplink]:
        """Every uplink that is set up, with its token source; nothing is sent by making one.

        `remembered`: its requests count in the gateway's next life too, which leaves a small file in data_dir.
        """
        found: list[Uplink] = []
        if (redex := self.config.settings.uplink.redex) is not None:
            found.append(_redex(redex, self.clock, self._gate("redex", redex.per_minute, remembered)))
        if (drec := self.config.settings.uplink.drec) is not None:
            found.append(_drec(drec, self.clock, self._gate("drec", drec.per_minute, remembered), self.meters))
        return found

    def adjusted(self, meter: str) -> tuple[Order | None, dict[str, Decimal]]:
        """What the configuration says of a meter's byte order and ratios today."""
        one = next(one for one in self.config.settings.meter if one.id == meter)
        return one.order, {name: Decimal(str(factor)) for name, factor in one.factors.items()}

    def outputs(self, rest: Callable[[str, str], Answer]) -> list[Output]:
        """Every output that is set up; nothing is opened by making one.

        `rest`: what the read-only REST says to a method and a target.
        """
        found: list[Output] = []
        if (mqtt := self.config.settings.mqtt) is not None:
            found.append(_mqtt(mqtt, self.config.settings, self.clock, self.meters))
        if (metrics := self.config.settings.metrics) is not None:
            site = self.config.settings.site.id
            found.append(_installed("metrics", lambda: _metrics(metrics, site, self.clock, self.meters)))
        if (sparkplug := self.config.settings.sparkplug) is not None:
            found.append(_installed("sparkplug", lambda: _sparkplug(sparkplug, self)))
        if (web := self.config.settings.web) is not None:
            found.append(_web(web, self.clock, rest))
        return found

    def rehearsal(self, name: str, base_url: str, token: Path) -> Uplink:
        """The uplink of that name exactly as this site has it set up, but at a stand-in platform."""
        from heliograph.uplink.gate import Gate

        where = {"base_url": base_url, "token": settings.Secret(file=token), "login": None, "ca_file": None}
        chosen = _uplink(self.config, name).model_copy(update=where)
        gate = Gate(60, self.clock)
        if isinstance(chosen, DrecSettings):
            return _drec(chosen, self.clock, gate, self.meters)
        return _redex(chosen, self.clock, gate)

    def _gate(self, uplink: str, per_minute: int, remembered: bool) -> Gate:
        from heliograph.uplink.gate import Gate

        return Gate(per_minute, self.clock, self.data_dir / f"requests.{uplink}" if remembered else None)

    def spread(self, uplink: str) -> timedelta:
        return _uplink(self.config, uplink).spread

    def sign(self, message: bytes) -> tuple[bytes, bytes]:
        """The device's public key, and its signature under a message."""
        from heliograph import seal

        return seal.sign(self.data_dir / seal.FILE, message)

    def past(self, meter: str, since: datetime, until: datetime, most: int) -> list[PastSample]:
        """What was stored of a meter in that time, for an output that has missed it; on a connection of its own."""
        found = next(one for one in self.meters if one.id == meter)
        store = self.reader()
        try:
            return look_back(found, store, since, until, most)
        finally:
            store.close()

    def reader(self) -> Store:
        return reader(self.data_dir)

    @contextmanager
    def writer(self) -> Iterator[Store]:
        """The store, for the one process that may write it: held by a lock for as long as it is open."""
        from heliograph.store import Store, opening
        from heliograph.store.copies import sweep

        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = _lock_file(self.data_dir / "lock")
        except OSError as error:
            raise StoreError(
                f"{self.data_dir} cannot be used: {error.strerror}",
                hint="Create it and give it to the service's user, or change site.data_dir.",
            ) from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StoreError(
                    f"another heliograph is running on {self.data_dir}",
                    hint="Ask it instead (heliograph status), or stop it: systemctl stop heliograph",
                ) from error
            sweep(self.data_dir)
            store, loss, known = opening.open_checked(self.data_dir, self.clock.now())
            suspect = False
            try:
                store.introduce(partial(self._begin, store, loss, known))
                if store.fault is not None and store.fault.damaged:
                    # After a clean end nobody looked through the file: its first use has shown it.
                    cause = store.fault.text
                    store.close()
                    loss = opening.replace_damaged(self.data_dir, self.clock.now(), cause)
                    store = Store.writer(self.data_dir)
                    store.introduce(partial(self._begin, store, loss, known))
                yield store
            except StoreError:
                suspect = True  # whatever it was, the next start looks closely
                raise
            finally:
                suspect = suspect or store.fault is not None
                store.close()
                if not suspect:
                    opening.unmark(self.data_dir)
        finally:
            os.close(handle)

    def copy_store(self, path: Path | None) -> dict[str, Any]:
        """A verified copy, at `path` or in data_dir/copies; only while the store is open here or in this process."""
        from heliograph.store.copies import copy_whole, target_of

        return copy_whole(self.data_dir, target_of(self.data_dir, path, self.clock.now())).as_json()

    def copy_ledger(self, *, forced: bool = False) -> dict[str, Any] | None:
        """The copy the gateway makes by itself, when one is due or what a person decided must be kept."""
        from heliograph.store import copies

        now = self.clock.now()
        return copies.copy_ledger(self.data_dir, now).as_json() if forced or copies.due(self.data_dir, now) else None

    def _begin(self, store: Store, loss: opening.Loss | None, known: int | None) -> None:
        """What is written at a start, as soon as it can be."""
        from heliograph.store import opening

        loss = opening.compared(store, self.data_dir, self.clock.now(), loss, known)
        if loss is not None:
            log.error("store_lost", what=str(loss), hint="heliograph status says what is waited for.")
        self._introduce(store)
        with suppress(StoreError):  # a card that has no room for a marker must not stop the metering
            opening.mark(self.data_dir, "open")

    def _introduce(self, store: Store) -> None:
        """Tells the store which site, boot, maps and meters there are, and queues days an added uplink has missed."""
        site, now = self.config.settings.site, self.clock.now()
        store.readings.begin(site.id, site.timezone, self.clock.boot_id, now)
        for meter, loaded in zip(self.meters, self.maps, strict=True):
            for source in loaded.sources:
                store.readings.know_map(source.digest, source.name, source.text)
            store.readings.know_meter(meter.id, meter.production)
            introduce(meter, store, library.from_texts)
            for report in meter.reports:
                store.outbox.queue(meter.id, report, now)
        store.days.carry_over(now)
        store.chain.configure(self._accounting(), now)

    def _accounting(self) -> dict[str, Any]:
        """What of the configuration a figure depends on, as the chain holds it; no secret is part of it."""
        settings = self.config.settings
        site, close = settings.site, settings.close
        platforms = {name: getattr(settings.uplink, name) for name in PLATFORMS}
        return {
            "site": site.id,
            "timezone": site.timezone,
            "position": [str(site.latitude), str(site.longitude)] if site.latitude is not None else None,
            "software": __version__,
            "clock": settings.clock.trust,
            "close": {
                "after_s": int(close.after.total_seconds()),
                "max_estimated_s": int(close.max_estimated.total_seconds()),
                "on_gap": close.on_gap,
            },
            "uplinks": {name: one.base_url for name, one in platforms.items() if one is not None},
            "meters": {
                meter.id: {
                    "bus": self.bus_settings(meter.bus).url,
                    "unit": meter.unit,
                    "map": meter.map_digest,
                    "map_name": meter.map.name,
                    "production": meter.production,
                    "order": chosen.order,
                    "means": means.digest if (means := meaning(meter)) is not None else None,
                    "rated_kw": str(meter.rated_kw),
                    "baseline_wh": meter.baseline_wh,
                    "serial": meter.serial,
                    "factors": {name: str(number) for name, number in meter.factors},
                    "report_as": dict(chosen.report_as),
                }
                for meter, chosen in zip(self.meters, settings.meter, strict=True)
            },
        }


def reader(data_dir: Path) -> Store:
    """A read-only view of a store, also where nothing else of its site is left."""
    from heliograph.store import Store

    return Store.reader(data_dir)


def _lock_file(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY)  # a card that is read-only today must not stop the live view


def line_at(url: str, *, connect: float = 3.0) -> Bus:
    """A line that no configuration has to name, for whoever looks for meters. `connect`: most seconds for TCP's."""
    from heliograph.bus.modbus import open_bus
    from heliograph.bus.wire import real_wire

    return open_bus(url, wire=partial(real_wire, connect=connect))


Secrets = Literal["must be there", "if they can be seen", "no"]


def load(path: Path, clock: Clock | None = None, *, secrets: Secrets = "no") -> App:
    """Checks a configuration with everything it names: maps, counters, secrets. Raises ConfigError (exit code 78).

    Only the service itself sees its secrets: whoever asks for the status need not be able to read a token.
    """
    config = settings.load(path)
    loaded = _maps(config)
    meters = tuple(_meter(config, number, one) for number, one in enumerate(loaded))
    _check_units(config, meters)
    if secrets != "no":
        _check_secrets(config, must=secrets == "must be there")
    if secrets == "if they can be seen":
        _check_packages(config)  # whoever checks can still install them; a gateway that starts meters without
    close = config.settings.close
    site = config.settings.site
    position = None
    if site.latitude is not None and site.longitude is not None:
        position = Position(site.latitude, site.longitude)
    rules = Rules(config.settings.zone, close.after, close.max_estimated, close.on_gap, position)
    return App(config, clock or SystemClock(config.settings.clock.trust), meters, loaded, rules)


def _maps(config: Config) -> tuple[library.LoadedMap, ...]:
    """Of each meter. Read once, however many have it: reading one takes a fast computer 25 ms."""
    read: dict[str, library.LoadedMap] = {}
    for number, meter in enumerate(config.settings.meter):
        if meter.map not in read:
            read[meter.map] = _map(config, number)
    return tuple(read[meter.map] for meter in config.settings.meter)


def _map(config: Config, number: int) -> library.LoadedMap:
    meter = config.settings.meter[number]
    if meter.map not in library.names():
        hint = library.nearest_name(meter.map, library.names(), "heliograph map list shows them all.")
        raise config.error(("meter", number, "map"), f"meter {meter.id}: there is no map {meter.map}", hint)
    loaded = library.load(meter.map)
    if loaded.map.sunspec is not None:
        raise config.error(
            ("meter", number, "map"),
            f"meter {meter.id}: {meter.map} is a SunSpec template, and no device by itself",
            f"Let it find this device and write a map of it: heliograph map sunspec {meter.id} --bus URL --unit N",
        )
    return loaded


def _meter(config: Config, number: int, loaded: library.LoadedMap) -> Meter:
    one = config.settings.meter[number]
    bus = next(bus for bus in config.settings.bus if bus.id == one.bus)
    production = _production(config, number, loaded.map)
    if loaded.map.status == "unverified" and one.report_as and not one.accept_unverified_map:
        raise config.error(
            ("meter", number, "map"),
            f"meter {one.id}: no device ever confirmed the map {one.map}, and figures would be delivered from it",
            "Compare `heliograph read` with the display, then set accept_unverified_map = true, or remove report_as.",
        )
    unit = loaded.map.unit if one.unit is None else one.unit
    reports = tuple(
        Report(
            uplink,
            name,
            _leaves_after(config, uplink, chosen := _uplink(config, uplink)),
            chosen.ordered,
            chosen.history,
        )
        for uplink, name in one.report_as.items()
    )
    return Meter(
        id=one.id,
        bus=one.bus,
        unit=unit,
        map=_adjusted(loaded.map, one),
        map_digest=loaded.digest,
        production=production,
        rated_kw=one.rated_kw,
        timing=_timing(loaded.map.timing, bus),
        every=bus.every,
        store_every=max(bus.store_every, bus.every),
        baseline_wh=int((Decimal(str(one.baseline_kwh)) * 1000).to_integral_value()),
        serial=one.serial,
        factors=tuple(sorted(one.factors.items())),
        reports=reports,
    )


def _leaves_after(config: Config, uplink: str, chosen: RedexSettings | DrecSettings) -> timedelta:
    """How long after midnight a day leaves: at once where the site says so, else spread over the fleet.

    From the moment on at which days are closed everywhere, else an eighth of a fleet would push right then.
    """
    after = config.settings.close.after
    if not chosen.spread:
        return after
    return max(after, chosen.earliest) + spread_offset(config.settings.site.id, uplink, chosen.spread)


def _uplink(config: Config, uplink: str) -> RedexSettings | DrecSettings:
    found: RedexSettings | DrecSettings = getattr(config.settings.uplink, uplink)
    return found


def _production(config: Config, number: int, map: MeterMap) -> str:
    """The counter that is production here; it must exist, count energy, and never fall in normal life."""
    one = config.settings.meter[number]
    place = ("meter", number, "production" if one.production else "map")
    usable = [r.quantity for r in map.registers if library.may_be_production(r)]
    name = one.production or map.production
    if name is None:
        raise config.error(place, f"meter {one.id}: which counter is production?", f"Counters: {', '.join(usable)}")
    if name not in usable:
        known = map.register(name) is not None
        reason = "may fall in normal life, so it cannot be production" if known else "is not in the map"
        raise config.error(place, f"meter {one.id}: {name} {reason}", f"Counters of {map.name}: {', '.join(usable)}")
    return name


def _adjusted(map: MeterMap, one: MeterSettings) -> MeterMap:
    return replace(map, order=one.order) if one.order else map


def _timing(timing: Timing, bus: BusSettings) -> Timing:
    """The map's timing with what the bus says instead."""
    if bus.timeout is not None:
        timing = replace(timing, timeout=bus.timeout.total_seconds())
    if bus.pause is not None:
        timing = replace(timing, pause=bus.pause.total_seconds())
    return replace(timing, retries=bus.retries) if bus.retries is not None else timing


def _check_units(config: Config, meters: tuple[Meter, ...]) -> None:
    seen: dict[tuple[str, int], str] = {}
    for number, meter in enumerate(meters):
        other = seen.setdefault((meter.bus, meter.unit), meter.id)
        if other != meter.id:
            raise config.error(
                ("meter", number, "unit"),
                f"meters {other} and {meter.id} are both unit {meter.unit} on bus {meter.bus}",
                "Two devices with one unit id answer at once. Give each its own, in the device and here.",
            )


# What an optional part needs is an extra of that name, so that a small box holds only what it uses.
EXTRAS = {"metrics": "prometheus-client", "sparkplug": "protobuf", "web": "uvicorn"}


def _check_packages(config: Config) -> None:
    from importlib import metadata

    for part, package in EXTRAS.items():
        if getattr(config.settings, part) is None:
            continue
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError as error:
            hint = f"Install the extra: pip install 'heliograph[{part}]' (deploy/README.md), or remove [{part}]."
            raise config.error((part,), f"[{part}] needs the package {package}, which is missing", hint) from error


def _check_secrets(config: Config, *, must: bool) -> None:
    """Every secret that is named must be there before anything starts; its text is not kept."""
    for name in settings.PLATFORMS:
        uplink: RedexSettings | DrecSettings | None = getattr(config.settings.uplink, name)
        if uplink is None:
            continue
        places = [("token", uplink.token)] if uplink.token else []
        if uplink.login is not None:
            places = [("login", getattr(uplink.login, field)) for field in type(uplink.login).model_fields]
        for key, secret in places:
            _check_secret(config, ("uplink", name, key), secret, must=must)
    for table in BROKERS:
        broker: BrokerSettings | None = getattr(config.settings, table)
        if broker is None:
            continue
        if broker.password is not None:
            _check_secret(config, (table, "password"), broker.password, must=must)
        for key in ("ca_file", "certificate_file", "key_file"):
            if (path := getattr(broker, key)) is not None:
                try:
                    path.open("rb").close()
                except OSError as error:
                    hint = "Write a PEM file there, readable for the service."
                    raise config.error((table, key), f"{path}: {error.strerror}", hint) from error

    web = config.settings.web
    if web is not None and web.token is not None:
        token = _check_secret(config, ("web", "token"), web.token, must=must)
        if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or " " in token):
            hint = "Write one there with: openssl rand -hex 32"
            why = f"web.token has {len(token)} characters or strange ones; {SHORTEST_TOKEN} plain ones at least"
            raise config.error(("web", "token"), why, hint)


def _check_secret(config: Config, place: tuple[str, ...], secret: settings.Secret, *, must: bool) -> str | None:
    """The secret, which must be there; None where only the service can see it."""
    if secret.credential is not None and not must and "CREDENTIALS_DIRECTORY" not in os.environ:
        return None  # systemd shows it to the service alone
    try:
        return _secret(secret).read()
    except ConfigError as error:
        raise config.error(place, error.message, error.hint) from error


def _secret(named: settings.Secret) -> tokens.Secret:
    from heliograph.uplink.tokens import Secret

    return Secret(file=named.file, env=named.env, credential=named.credential)


def sieve(secrets: Iterable[str]) -> Callable[[str], str]:
    """Takes these secrets out of a text, in whatever form they stand there."""
    from heliograph.uplink.http import mask

    hidden = frozenset(secrets)
    return lambda text: mask(text, hidden)


def _hide(secrets: Callable[[], frozenset[str]]) -> None:
    """No log line shows one of these, as they are then, whoever wrote it."""
    from heliograph.uplink.http import mask

    logs.hide(lambda text: mask(text, secrets()))


def _broker_at(table: str, chosen: BrokerSettings, client_id: str) -> Address:
    """Where a broker is, and who we are there."""
    from heliograph.outputs.broker import Address

    password = None
    if chosen.password is not None:
        secret = _secret(chosen.password)
        _hide(secret.known)
        password = secret.read
    return Address(
        chosen.host,
        chosen.port,
        chosen.client_id or client_id,
        tls=chosen.tls,
        username=chosen.username,
        password=password,
        ca=chosen.ca_file,
        certificate=chosen.certificate_file,
        key=chosen.key_file,
        table=table,
    )


def _mqtt(chosen: MqttSettings, whole: settings.Settings, clock: Clock, meters: tuple[Meter, ...]) -> Output:
    from heliograph.outputs.mqtt import Mqtt, Policy, Topics

    topics = Topics(chosen.root, whole.site.id)
    return Mqtt(
        _broker_at("mqtt", chosen, f"heliograph-{whole.site.id}"),
        topics,
        [meter.id for meter in meters],
        Policy(chosen.every, chosen.dead_band, chosen.heartbeat),
        clock,
        qos=chosen.qos,
        rider=_home_assistant(chosen, whole, topics, meters),
    )


def _home_assistant(
    chosen: MqttSettings, whole: settings.Settings, topics: Topics, meters: tuple[Meter, ...]
) -> HomeAssistant | Farewell:
    from heliograph.outputs.home_assistant import Farewell, HomeAssistant, Site

    if chosen.home_assistant is None:
        return Farewell(topics, chosen.qos)
    uplinks = {name: uplink for name in PLATFORMS if (uplink := getattr(whole.uplink, name)) is not None}
    return HomeAssistant(
        Site(
            chosen.home_assistant,
            topics,
            meters,
            tuple(uplinks),
            frozenset(name for name, uplink in uplinks.items() if uplink.token is not None),
            tuple(bus.id for bus in whole.bus),
            chosen.heartbeat,
            chosen.qos,
        )
    )


def _installed(table: str, make: Callable[[], Output]) -> Output:
    """What needs an extra is no reason not to meter where that is not installed."""
    from heliograph.outputs.absent import Absent

    try:
        return make()
    except ModuleNotFoundError as error:
        log.warning("output_down", output=table, error=str(error), hint=f"pip install 'heliograph[{table}]'")
        return Absent(table, EXTRAS[table])


def _web(settings: WebSettings, clock: Clock, rest: Callable[[str, str], Answer]) -> Output:
    from heliograph.web.server import Web  # takes memory

    assert settings.token is not None  # settings: no [web] without a token
    token = _secret(settings.token)
    _hide(token.known)
    return Web(settings.host, settings.port, token.read, rest, clock)


def _metrics(chosen: MetricsSettings, site: str, clock: Clock, meters: tuple[Meter, ...]) -> Output:
    from heliograph.outputs.metrics import Metrics

    buses = {meter.id: meter.bus for meter in meters}
    return Metrics(chosen.host, chosen.port, clock, site, buses, PLATFORMS)


def _sparkplug(chosen: SparkplugSettings, site: App) -> Output:
    from heliograph.outputs.sparkplug import Role, Sparkplug

    id = site.config.settings.site.id
    role = Role(chosen.group, chosen.node or id, chosen.primary_host, chosen.every, chosen.dead_band, chosen.history)
    address = _broker_at("sparkplug", chosen, f"heliograph-{id}-sparkplug")
    return Sparkplug(address, site.clock, role, site.meters, site.past, site.data_dir / "sparkplug")


def _redex(chosen: RedexSettings, clock: Clock, gate: Gate) -> Uplink:
    from heliograph.uplink.http import Http
    from heliograph.uplink.redex import Redex, dialect
    from heliograph.uplink.tokens import StaticToken, redex_login

    http = Http(chosen.base_url, ca=chosen.ca_file, gate=gate, now=clock.now)
    source: tokens.TokenSource
    if chosen.login is not None:
        login = chosen.login
        source = redex_login(http, _secret(login.api_key), _secret(login.client_id), _secret(login.client_secret))
    else:
        assert chosen.token is not None  # settings: either token or login
        source = StaticToken(_secret(chosen.token))
    _hide(source.secrets)
    keys = {key: getattr(chosen, key) for key in DIALECT_KEYS}
    how = dialect(chosen.dialect, **keys)
    return Redex("redex", http, how, source, clock.now, absent_after=chosen.absent_after)


def drec_address(chosen: DrecSettings) -> str:
    """The e-mail address of the login or in the token; '' where it cannot be seen."""
    from heliograph.uplink.tokens import claim

    try:
        if chosen.login is not None:
            return _secret(chosen.login.username).read().strip()
        found = claim(_secret(chosen.token).read(), "email") if chosen.token is not None else None
    except ConfigError:
        return ""
    return found if isinstance(found, str) else ""


def drec_warning(chosen: DrecSettings) -> str:
    from heliograph.uplink.tokens import too_long

    return too_long(drec_address(chosen))


def _drec(chosen: DrecSettings, clock: Clock, gate: Gate, meters: tuple[Meter, ...]) -> Uplink:
    from heliograph.uplink.drec import Drec
    from heliograph.uplink.http import Http
    from heliograph.uplink.tokens import StaticToken, drec_login

    http = Http(chosen.base_url, ca=chosen.ca_file, gate=gate, now=clock.now, timeout=30.0)
    source: tokens.TokenSource
    if chosen.login is not None:
        source = drec_login(http, _secret(chosen.login.username), _secret(chosen.login.password))
    else:
        assert chosen.token is not None  # settings: either token or login
        source = StaticToken(_secret(chosen.token))
    _hide(source.secrets)
    return Drec(
        "drec",
        http,
        chosen.read_type,
        source,
        clock.now,
        organization=chosen.organization_id,
        zero_wh={meter.id: meter.baseline_wh for meter in meters},
        address=drec_address(chosen),
    )
