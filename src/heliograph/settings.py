"""config.toml, checked. Every message names file, line and the nearest valid name; nothing is started on a doubt."""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, available_timezones

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from heliograph import toml_lines
from heliograph.core import durations, line
from heliograph.core.errors import ConfigError
from heliograph.core.registers import Order

PLATFORMS = ("redex", "drec")

Duration = Annotated[
    timedelta,
    BeforeValidator(lambda value: durations.duration(value) if isinstance(value, str) else value),
    WithJsonSchema({"type": "string", "pattern": durations.PATTERN}),
]
_ID = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
Id = Annotated[str, Field(pattern=_ID)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Site(Part):
    id: Id
    """Names this gateway in topics, logs and evidence."""
    timezone: str
    """IANA zone; days are closed at its midnight."""
    data_dir: Path = Path("/var/lib/heliograph")
    latitude: Annotated[float, Field(ge=-90, le=90)] | None = None
    """Degrees north; with longitude: expected night silence and the shape of a split gap."""
    longitude: Annotated[float, Field(ge=-180, le=180)] | None = None


def _bus_url(text: str) -> str:
    try:
        line.parse(text)
    except ConfigError as error:
        raise ValueError(f"{error.message}. {error.hint}") from error
    return text


class BusSettings(Part):
    id: Id
    url: Annotated[str, AfterValidator(_bus_url)]
    """serial:///dev/...?baudrate=9600&parity=N&stopbits=1, tcp://host:port or rtu+tcp://host:port."""
    every: Duration = timedelta(seconds=10)
    """Poll period."""
    store_every: Duration = timedelta(seconds=60)
    """How often a sample is kept; borders of days, seams and doubts are kept always."""
    timeout: Duration | None = None
    """Overrides the maps' time-out."""
    pause: Duration | None = None
    """Overrides the maps' silence between requests."""
    retries: Annotated[int, Field(ge=0, le=10)] | None = None
    """Overrides the maps' repeats after silence."""


class MeterSettings(Part):
    id: Id
    bus: str
    unit: Annotated[int, Field(ge=0, le=255)] | None = None
    """Modbus unit id; the map knows the factory setting."""
    map: str
    rated_kw: Annotated[float, Field(gt=0)]
    """Nameplate power; a counter that rises faster is not believed."""
    production: str | None = None
    """The counter that is production here: the map suggests, the site decides."""
    report_as: dict[str, Annotated[str, Field(min_length=1, max_length=100)]] = {}
    """Name of this meter at each uplink."""
    serial: str | None = None
    """Refuse any other meter."""
    baseline_kwh: Annotated[float, Field(ge=0)] = 0
    """Running total at commissioning."""
    accept_unverified_map: bool = False
    """Deliver figures although the map was never checked against a device."""
    order: Order | None = None
    """Byte order where this device was set differently from its map."""
    factors: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Ratios the device does not tell, such as ct_ratio. Where it does tell one, what stands here counts."""


class Secret(Part):
    """Where a secret stands; never the secret itself."""

    file: Path | None = None
    env: str | None = None
    credential: str | None = None
    """Name of a systemd credential."""

    @model_validator(mode="after")
    def _one(self) -> Secret:
        if sum(value is not None for value in (self.file, self.env, self.credential)) != 1:
            raise ValueError('exactly one of file, env or credential, such as { file = "/etc/heliograph/redex.token" }')
        return self


class RedexLogin(Part):
    api_key: Secret
    client_id: Secret
    client_secret: Secret


class DrecLogin(Part):
    username: Secret
    password: Secret


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _base_url(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in ("https", "http") or not url.hostname:
        raise ValueError("write https://host of the platform")
    if url.scheme == "http" and not _loopback(url.hostname):
        raise ValueError("plain http would show the token to everybody on the way; use https")
    return text.rstrip("/")


BaseUrl = Annotated[str, AfterValidator(_base_url)]


class UplinkSettings(Part):
    base_url: BaseUrl
    token: Secret | None = None
    """A device token (JWT), or use login."""
    ca_file: Path | None = None
    """A private certificate authority, in PEM."""
    spread: Duration = timedelta(hours=2)
    """Stable per-site offset of the nightly push; "0s" sends at once."""
    per_minute: Annotated[int, Field(ge=1, le=60)] = 10
    """Own limit of requests a minute."""
    ordered: ClassVar[bool] = False
    """What the uplink says of itself (ports.Uplink); here, so that a verb need not make one."""
    history: ClassVar[bool] = False
    """Takes days before the device was registered, as History reads."""
    earliest: ClassVar[timedelta] = timedelta(0)
    """After midnight, before which nothing is sent; from there on the push is spread."""


class RedexSettings(UplinkSettings):
    earliest: ClassVar[timedelta] = timedelta(hours=1)  # redex.md section 9, rule 5: only days that are surely over
    login: RedexLogin | None = None
    dialect: Literal["grouped-2024", "legacy"] = "grouped-2024"
    path_single: str | None = None
    path_batch: str | None = None
    path_query: str | None = None
    path_status: tuple[str, ...] | None = None
    accumulated_field: str | None = None
    send_frequency_type: bool | None = None
    decimals: Literal[3, 4] | None = None
    value_encoding: Literal["string", "number"] | None = None
    max_records: Annotated[int, Field(ge=1, le=3000)] | None = None
    absent_after: Duration = timedelta(hours=1)
    """How long after a request the platform's "I hold nothing" is believed: it stores what it accepted later."""


class DrecSettings(UplinkSettings):
    ordered: ClassVar[bool] = True
    history: ClassVar[bool] = True
    login: DrecLogin | None = None
    read_type: Literal["Delta", "Aggregate"] = "Delta"
    organization_id: int | None = None
    """Only for API users."""


class Uplinks(Part):
    redex: RedexSettings | None = None
    drec: DrecSettings | None = None


class Close(Part):
    after: Duration = timedelta(minutes=15)
    """How long after midnight a day is closed."""
    max_estimated: Duration = timedelta(hours=2)
    """Longest gap over midnight that is split without asking."""
    on_gap: Literal["hold", "split", "carry"] = "hold"
    """What happens to the days a longer gap touches."""


class ClockSettings(Part):
    trust: Literal["auto", "always"] = "auto"
    """The kernel's word, else a platform's (the Date of its answers); "always" where the host keeps the time."""


BROKER_PORTS = {"mqtt": 1883, "mqtts": 8883}


def _broker_url(text: str) -> str:
    url = urlsplit(text)
    try:
        usable = url.scheme in BROKER_PORTS and url.hostname and url.port != 0
    except ValueError:  # no number, or beyond 65535
        usable = False
    if url.username is not None or url.password is not None:
        raise ValueError("no user or password in a url, which stands in logs; use the keys username and password")
    if not usable or url.path.strip("/") or url.query or url.fragment:
        raise ValueError("write mqtt://host or mqtts://host (TLS) of the broker, with :port unless it is 1883 or 8883")
    return text.rstrip("/")


def _topic(text: str) -> str:
    if re.search(r"[+#\x00-\x1f\x7f-\x9f]", text) or text.startswith(("/", "$")) or text.endswith("/") or "//" in text:
        raise ValueError("a topic without + and #, and with / only between its parts, such as solar/heliograph")
    return text


Topic = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_topic)]


class BrokerSettings(Part):
    url: Annotated[str, AfterValidator(_broker_url)]
    """mqtt://host or mqtts://host of the broker, with :port unless it is 1883 or 8883."""
    username: str | None = None
    """As the broker knows this gateway."""
    password: Secret | None = None
    """Read anew before each connect."""
    ca_file: Path | None = None
    """The authority that signed the broker's certificate, in PEM; then no other counts."""
    certificate_file: Path | None = None
    """This gateway's own certificate, where the broker asks for one."""
    key_file: Path | None = None
    """Its private key, without a pass phrase; not needed where it stands in certificate_file."""
    client_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$")] | None = None
    """Name of this connection at the broker; made of site.id. No two clients may share one."""

    @property
    def tls(self) -> bool:
        return self.url.startswith("mqtts://")

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or BROKER_PORTS[urlsplit(self.url).scheme]

    @property
    def readable(self) -> bool:
        """The password can be read by everybody on the way."""
        return self.password is not None and not self.tls and not _loopback(self.host)

    @model_validator(mode="after")
    def _whole(self) -> BrokerSettings:
        if self.password is not None and self.username is None:
            raise ValueError("a password needs a username")
        if self.key_file is not None and self.certificate_file is None:
            raise ValueError("key_file needs certificate_file, the certificate it belongs to")
        if not self.tls and (self.ca_file or self.certificate_file):
            raise ValueError("certificates are for mqtts://, and the url says mqtt://")
        return self


def _prefix(given: object) -> object:
    if isinstance(given, bool):
        raise ValueError('write home_assistant = "homeassistant", its discovery prefix, or leave the line out')
    return given


class MqttSettings(BrokerSettings):
    root: Topic = "heliograph"
    """First part of all topics."""
    qos: Literal[0, 1, 2] = 1
    """0 at most once, 1 at least once, 2 exactly once."""
    every: Duration = timedelta(seconds=10)
    """Least time between two messages of one quantity; a change of its quality is told at once."""
    dead_band: Annotated[float, Field(ge=0, le=50)] = 1.0
    """Smaller changes are left out, in percent; energy is told once a minute."""
    heartbeat: Duration = timedelta(minutes=5)
    """What does not change is told again after this."""
    home_assistant: Annotated[Topic, BeforeValidator(_prefix)] | None = None
    """Prefix of Home Assistant's discovery topics, "homeassistant" unless it was changed there; none: not announced."""


def _listen(text: str) -> str:
    host, _, port = text.rpartition(":")
    try:
        ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]"))
        fits = (":" in host) == host.startswith("[") == host.endswith("]")
    except ValueError:
        fits = False
    if not fits or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ValueError(
            'an address of this computer and a port, such as "127.0.0.1:9464", "0.0.0.0:9464" or "[::1]:9464"'
        )
    return text


Listen = Annotated[str, AfterValidator(_listen)]


class Listening(Part):
    """What others may connect to."""

    listen: Listen

    @property
    def host(self) -> str:
        host = self.listen.rpartition(":")[0].removeprefix("[").removesuffix("]")
        return "127.0.0.1" if host == "localhost" else host

    @property
    def port(self) -> int:
        return int(self.listen.rpartition(":")[2])

    @property
    def readable(self) -> bool:
        """Others than this computer can reach it, and read on the way what is said."""
        return not _loopback(self.host)


def _level(text: str) -> str:
    if re.search(r"[+#/\x00-\x1f\x7f-\x9f]", text) or text != text.strip():
        raise ValueError("a name without +, # and /, for it is one part of a topic")
    return text


Level = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_level)]


class SparkplugSettings(BrokerSettings):
    group: Level
    """Group id: what belongs together in the host's tree, such as a fleet or a region."""
    node: Level | None = None
    """Edge node id; site.id unless given. Group and node together are this gateway's and nobody else's."""
    primary_host: Level | None = None
    """Id of the primary host application: where it is given, nothing is said while that host is offline."""
    every: Duration = timedelta(seconds=10)
    """Least time between two values of one metric; a change of its quality is told at once."""
    dead_band: Annotated[float, Field(ge=0, le=50)] = 1.0
    """Smaller changes are left out, in percent; energy is told once a minute."""
    history: Duration = timedelta(days=7)
    """What was stored while nobody listened is sent afterwards, so far back; "0s" leaves it out."""


class MetricsSettings(Listening):
    listen: Listen = "127.0.0.1:9464"
    """Address and port; what is shown there has no password, so other addresses than this computer's own are open."""


class WebSettings(Listening):
    listen: Listen = "127.0.0.1:8080"
    """Address and port; 127.0.0.1 is reached from this computer alone."""
    token: Secret | None = None
    """What whoever asks has to send; needed. A new one counts at once."""


class Retention(Part):
    fine: Duration = timedelta(days=56)
    """Samples are thinned to one an hour after this."""
    hourly: Duration = timedelta(days=400)
    """Hourly samples go after this; readings at the borders of days stay for ever."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="HELIOGRAPH_",
        env_nested_delimiter="__",
        title="Heliograph configuration",
    )
    site: Site
    bus: tuple[BusSettings, ...] = Field(min_length=1)
    meter: tuple[MeterSettings, ...] = Field(min_length=1)
    uplink: Uplinks = Uplinks()
    close: Close = Close()
    clock: ClockSettings = ClockSettings()
    retention: Retention = Retention()
    web: WebSettings | None = None
    """Answers the read-only REST over HTTP; deploy/REST.md has examples."""
    mqtt: MqttSettings | None = None
    """Shows readings, days and the site's state to an MQTT broker; deploy/MQTT.md has the topics."""
    metrics: MetricsSettings | None = None
    """Shows how the gateway is to Prometheus; deploy/prometheus/README.md has the metrics."""
    sparkplug: SparkplugSettings | None = None
    """Shows the site as a Sparkplug B edge node, for a SCADA; deploy/SPARKPLUG.md has the metrics."""

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.site.timezone)


@dataclass(frozen=True)
class Config:
    """Checked settings and the text they came from, for messages with lines."""

    settings: Settings
    path: Path
    text: str

    def error(self, place: Sequence[str | int], message: str, hint: str = "") -> ConfigError:
        """An error that points at a place such as ("meter", 0, "map")."""
        return ConfigError(message, hint=hint, path=self.path, line=toml_lines.line_of(self.text, place))


def load(path: Path) -> Config:
    """Reads and checks a configuration; raises ConfigError (exit code 78)."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        hint = "Copy config.example.toml there, or name another file with --config."
        raise ConfigError(f"cannot be read: {error}", hint=hint, path=path) from error
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}", hint="Strings stand in quotes, one key per line.", path=path) from error

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            del init_settings, dotenv_settings, file_secret_settings
            return env_settings, TomlConfigSettingsSource(settings_cls, path)

    build: Any = FromFile  # its arguments come from the sources
    try:
        config = Config(build(), path, text)
    except ValidationError as error:
        raise _readable(error, path, text) from error
    _check(config)
    return config


def _readable(error: ValidationError, path: Path, text: str) -> ConfigError:
    """The first fault in the order of the file, as a sentence."""
    found = toml_lines.lines(text)
    faults = [
        (toml_lines.nearest(found, tuple(fault["loc"])), fault)
        for fault in error.errors(include_url=False, include_context=False)
    ]
    # A list whose element failed is reported as too short as well: only the innermost fault counts.
    places = [tuple(fault["loc"]) for _, fault in faults]
    faults = [
        (where, fault)
        for where, fault in faults
        if not any(
            place[: len(fault["loc"])] == tuple(fault["loc"]) and place != tuple(fault["loc"]) for place in places
        )
    ]
    # A misspelt key is unknown and, where it is required, missing too: the spelling is what has to be corrected.
    number, fault = min(faults, key=lambda pair: (pair[1]["type"] != "extra_forbidden", pair[0] or 0))
    place = [part for part in fault["loc"] if not str(part).startswith("function-")]
    name = _name(place)
    if fault["type"] == "extra_forbidden":
        known = _keys(Settings, place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, 1)
        message = f"unknown key {name}"
        hint = f"Did you mean {near[0]}?" if near else f"Keys here: {', '.join(known)}."
    elif fault["type"] == "missing":
        message, hint = f"{name} is missing", "config.example.toml shows every key with its meaning."
    else:
        message = f"{name}: {fault['msg'].removeprefix('Value error, ')}"
        hint = "Correct this line, then run: heliograph check"
    if len(faults) > 1:
        hint += f" ({len(faults) - 1} more after this one.)"
    return ConfigError(message, hint=hint, path=path, line=number)


def _name(place: Sequence[str | int]) -> str:
    """("meter", 1, "unit") as a person says it: meter[2].unit."""
    text = ""
    for part in place:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _keys(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """The keys that are valid at a place of the model."""
    for part in place:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        inner = _models(model.model_fields[part].annotation)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _models(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _models(part)) is not None), None)


def _check(config: Config) -> None:
    """What no single key can know: names that must exist, or must not stand twice."""
    settings = config.settings
    if settings.site.timezone not in available_timezones():
        near = difflib.get_close_matches(settings.site.timezone, available_timezones(), 1)
        hint = f"Did you mean {near[0]}?" if near else 'Write an IANA name such as "Asia/Singapore".'
        raise config.error(("site", "timezone"), f"no such zone: {settings.site.timezone}", hint)
    if (settings.site.latitude is None) != (settings.site.longitude is None):
        raise config.error(("site",), "latitude and longitude belong together", "Give both, or neither.")
    _unique(config, "bus", [bus.id for bus in settings.bus], "id")
    _unique(config, "bus", [bus.url for bus in settings.bus], "url")
    _unique(config, "meter", [meter.id for meter in settings.meter], "id")
    buses = [bus.id for bus in settings.bus]
    uplinks = [name for name in PLATFORMS if getattr(settings.uplink, name) is not None]
    remote: dict[tuple[str, str], str] = {}
    for number, meter in enumerate(settings.meter):
        if meter.bus not in buses:
            near = difflib.get_close_matches(meter.bus, buses, 1)
            hint = f"Did you mean {near[0]}?" if near else f"Buses here: {', '.join(buses)}."
            raise config.error(("meter", number, "bus"), f"meter {meter.id}: there is no bus {meter.bus}", hint)
        for uplink, name in meter.report_as.items():
            place = ("meter", number, "report_as", uplink)
            if uplink not in uplinks:
                near = difflib.get_close_matches(uplink, PLATFORMS, 1)
                hint = f"Did you mean {near[0]}?" if near and near[0] != uplink else f"Add [uplink.{uplink}]."
                raise config.error(place, f"meter {meter.id} reports to {uplink}, which is not set up", hint)
            if (uplink, name) in remote:
                message = f"meters {remote[uplink, name]} and {meter.id} both report to {uplink} as {name}"
                raise config.error(place, message, "Two meters under one name would be added up. Give each its own.")
            remote[uplink, name] = meter.id
    for name in uplinks:
        uplink_settings: RedexSettings | DrecSettings = getattr(settings.uplink, name)
        if (uplink_settings.token is None) == (uplink_settings.login is None):
            hint = f'Add: token = {{ file = "/etc/heliograph/{name}.token" }}'
            raise config.error(("uplink", name), f"uplink.{name} needs either token or login", hint)

    if settings.web is not None and settings.web.token is None:
        hint = 'Add: token = { file = "/etc/heliograph/web.token" }, and write one there: openssl rand -hex 32'
        raise config.error(("web",), "web needs a token, for whoever reaches the port could read everything", hint)
    if settings.metrics is not None and settings.web is not None and settings.metrics.listen == settings.web.listen:
        message = f"metrics and web both want to listen at {settings.web.listen}"
        raise config.error(("web", "listen"), message, "Give each a port of its own.")
    mqtt, sparkplug = settings.mqtt, settings.sparkplug
    if mqtt is not None and sparkplug is not None and (mqtt.host, mqtt.port) == (sparkplug.host, sparkplug.port):
        ids = (
            mqtt.client_id or f"heliograph-{settings.site.id}",
            sparkplug.client_id or f"heliograph-{settings.site.id}-sparkplug",
        )
        if ids[0] == ids[1]:
            which = "sparkplug" if sparkplug.client_id else "mqtt"
            message = f"mqtt and sparkplug both call themselves {ids[0]} at {mqtt.host}"
            raise config.error(
                (which, "client_id"), message, "A broker throws out one of two with the same client_id: change one."
            )


def _unique(config: Config, table: str, values: Sequence[str], key: str) -> None:
    for number, value in enumerate(values):
        if value in values[:number]:
            hint = f"Every {table} needs its own {key}."
            raise config.error((table, number, key), f"{table} {key} {value} stands here twice", hint)
