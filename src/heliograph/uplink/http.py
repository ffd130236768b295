"""One HTTP exchange, told apart by what may have left. The only module that knows httpx.

Whether a day may be sent again depends on one question: can the platform have got it? So an exchange ends in one
of three ways, and nothing that the network can cause is raised:

NotSent   no byte of the request left: the days are due again
Unclear   it may have arrived, and no status came back: the days are read back
Answer    a status came back; what it means is the dialect's matter
"""

from __future__ import annotations

import base64
import contextlib
import errno
import ipaddress
import json
import re
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import quote, quote_plus, urlsplit

import heliograph
from heliograph.core import durations
from heliograph.core.delivery import FLOOR, Verdict
from heliograph.core.errors import ConfigError
from heliograph.uplink import certificate
from heliograph.uplink.gate import Gate

if TYPE_CHECKING:
    import httpx

BODY_LIMIT = 256 * 1024
EXCERPT = 300
# A Retry-After beyond a day is a mistake of somebody's clock; asking once a day harms nobody.
# Seconds for a question: nothing hangs on it but the time of the days behind it, and it can be asked again.
QUESTION = 30.0
LONGEST_WAIT = timedelta(days=1)
# A server may hang up on a kept connection while the next request is on its way, and then nobody knows whether it
# arrived. So one that was idle for longer than this (seconds) is not used again.
IDLE = 5.0
# What two clocks may differ by before one of them is called wrong.
APART = timedelta(minutes=2)
# x509_vfy.h: what OpenSSL found wrong with a certificate.
EARLY, EXPIRED, OTHER_NAMES = 9, 10, (62, 64)
NO_CHECK_TIME = 0x200000

# Rules of what is not sent because there is no token to send it with.
TOKEN_RULES = ("token", "login", "config")

NETWORK = "Check the network, the name service and base_url; the days stay due and nothing is lost."
INTERCEPTED = (
    "Nothing was sent. Open {url} in a browser on site: a sign-in page wants to be answered; a firewall that opens TLS "
    "has to leave {host} alone, or its authority goes into ca_file."
)
PORTAL = "Open base_url in a browser on site: a sign-in page wants to be answered, or a proxy or base_url is wrong."
PROXY_FORM = "Write HTTPS_PROXY (or ALL_PROXY) as http://host:port in the environment of the service."
PROXY = (
    "Check HTTPS_PROXY in the environment of the service (http://user:password@host:port), or name the platform in "
    "NO_PROXY; the days stay due and nothing is lost."
)
CLOCK = "Check the clock and NTP (timedatectl); days wait until it is right, none is lost."


@dataclass(frozen=True, slots=True)
class NotSent:
    """No byte of the request left this machine."""

    rule: str
    reason: str
    hint: str = ""
    wait: timedelta | None = None
    busy: bool = False
    """Somebody said that we ask too often."""


@dataclass(frozen=True, slots=True)
class Unclear:
    """The request may have arrived; no status came back."""

    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A status came back. Body and JSON stay out of `repr`, for an answer to a login holds a token."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    json: Any = field(default=None, repr=False)
    """None where the body is not JSON, is cut off, or is `null`."""
    complete: bool = True
    """False: the body broke off, was longer than we read, or is compressed although we asked for plain."""
    hide: frozenset[str] = field(default=frozenset(), repr=False)
    note: str = ""
    """What we know about it beside its own words."""

    @property
    def empty(self) -> bool:
        return self.complete and not self.body.strip()

    @property
    def success(self) -> bool:
        return 200 <= self.status < 300

    def words(self) -> str:
        """What the platform says, for people: its message where it has one, else the beginning of the body."""
        said = _message(self.json) or self.body.decode("utf-8", "replace")
        if said.lstrip()[:1] == "<":
            said = _TAG.sub(" ", said)
        if self.success and self.empty:
            said = "and nothing else, from a captive portal or a proxy perhaps"
        return f"{f'{self.note}: ' if self.note else ''}{self.status} {clean(said, self.hide)}".strip()

    def retry_after(self, now: datetime) -> timedelta | None:
        """Retry-After in seconds or as a date; None where there is no usable one."""
        text = self.headers.get("retry-after", "").strip()
        if text.isdecimal() and len(text) < 10:
            return min(timedelta(seconds=int(text)), LONGEST_WAIT)
        date = _date(text)
        return None if date is None else min(max(date - now, timedelta(0)), LONGEST_WAIT)

    def date(self) -> datetime | None:
        """The server's clock, whole seconds."""
        return _date(self.headers.get("date", ""))


Exchange = NotSent | Unclear | Answer


def fault(found: NotSent | Unclear) -> Verdict:
    """What an exchange without a status means for the rows it carried."""
    if isinstance(found, NotSent):
        hint, token = found.hint or NETWORK, found.rule in TOKEN_RULES
        return Verdict("due", found.rule, found.reason, hint, found.wait, pause_all=True, busy=found.busy, token=token)
    return Verdict("unclear", found.rule, found.reason, "The days are read back before anything is sent again.")


def portal(answer: Answer) -> Verdict | None:
    """Somebody between us and the platform answered: a redirect, a sign-in page, or a page instead of JSON."""
    if (cause := stranger(answer)) == "":
        return None
    return Verdict("unclear", "portal", f"{cause} ({answer.words()})", PORTAL, FLOOR, pause_all=True)


def stranger(answer: Answer) -> str:
    """Who seems to have answered instead of the platform, in words that quote nothing of the body; '' where nobody."""
    page = "html" in answer.headers.get("content-type", "") or answer.body.lstrip()[:1] == b"<"
    if 300 <= answer.status < 400:
        # Where it points is told without its query, which may hold anything.
        to = clean(answer.headers.get("location", "").partition("?")[0], answer.hide, 100) or "nowhere"
        return f"something between here and the platform answered, a captive portal perhaps: redirect to {to}"
    if answer.status == 511:
        return "a captive portal answered instead of the platform: the network wants a sign-in"
    if answer.success and page:
        return "a page answered instead of the platform, the sign-in of a captive portal perhaps"
    return ""


def apart(theirs: datetime | None, early: datetime, late: datetime) -> str:
    """Where a server's clock, read between two moments of ours, differs too much: "3 h behind", else ''."""
    if theirs is None:
        return ""
    if theirs - late > APART:
        return f"{durations.shown(theirs - late)} behind"
    return f"{durations.shown(early - theirs)} ahead of" if early - theirs > APART else ""


@dataclass(slots=True)
class _Course:
    """How far a request has come."""

    late: threading.Event = field(default_factory=threading.Event)
    stage: Literal["unknown", "connecting", "left"] = "unknown"
    dialled: tuple[str, int] | None = None


class _Shown(Exception):
    """Ends a connection that was only made to look at the certificate: here it is, in DER."""


class Http:
    """One kept connection to one platform; one request at a time."""

    def __init__(
        self,
        base_url: str,
        *,
        timeout: float = 60.0,
        connect: float = 10.0,
        ca: Path | None = None,
        now: Callable[[], datetime] | None = None,
        gate: Gate | None = None,
        transport: httpx.BaseTransport | None = None,
        timer: type[threading.Timer] = threading.Timer,
    ) -> None:
        """`timeout` ends the whole exchange, `connect` the part before anything leaves; both in real seconds.
        A question, which has no body, ends after 30 s at the latest.

        `ca` is added to the known authorities; there is no switch to leave the verification out. `now` is our clock,
        to tell a wrong one from an expired certificate. Every request passes the `gate`, logins and pages included.
        Tests bring their own `transport`, and a `timer` that fires when the other side is ready for it.
        """
        self.base_url = checked(base_url)
        self.timeout = timeout
        self.gate = gate
        self._connect = connect
        self._ca = ca
        self._now = now
        self._transport = transport
        self._timer = timer
        self._client: httpx.Client | None = None
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def date(self) -> datetime | None:
        """The server's clock. Behind verified TLS it is a witness; any status will do."""
        found = self.exchange("HEAD", "/")
        return found.date() if isinstance(found, Answer) else None

    def exchange(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        token: str = "",
        hide: Iterable[str] = (),
    ) -> Exchange:
        """One request and its answer. What `hide` names never shows in a text that comes back."""
        if self.gate is not None and not self.gate.enter():
            return NotSent("stopping", "the gateway is stopping; this was not sent", "It goes on after the next start.")
        found: Exchange | None = None
        try:
            found = self._exchange(method, path, query, body, token, hide)
            return found
        finally:
            if self.gate is not None:
                # Naming the fault of a certificate may have taken a question of its own, without a token.
                nothing = isinstance(found, NotSent) and found.rule not in ("certificate", "clock")
                self.gate.leave(sent=not nothing, answered=isinstance(found, Answer))

    def _exchange(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: bytes | None,
        token: str,
        hide: Iterable[str],
    ) -> Exchange:
        _leave_out_command_line()
        import httpx

        secrets = frozenset(hide) | ({token} if token else frozenset())
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        with self._lock:
            try:
                client = self._open()
            except (ValueError, ImportError, httpx.InvalidURL):  # not quoted, for a password may stand in it
                return NotSent("proxy", "the proxy named in the environment cannot be used", PROXY_FORM)
            course = _Course()
            limit = self.timeout if body is not None else min(self.timeout, QUESTION)
            timer = self._timer(limit, self._cut, [course.late])
            timer.daemon = True
            timer.start()
            try:
                url = self.base_url + path
                with client.stream(
                    method,
                    url,
                    params=query,
                    content=body,
                    headers=headers,
                    extensions={"trace": partial(self._seen, course)},
                ) as response:
                    found: Exchange = self._answer(response, course.late, secrets)
            except httpx.ProxyError as exc:
                found = self._refused_by_proxy(course, clean(str(exc), secrets))
            # ConnectError covers refused, no route, unknown name and every TLS failure before the request.
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as exc:
                found = self._no_connection(course, exc, secrets)
            except (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL) as exc:
                found = NotSent("request", f"no request could be made: {clean(str(exc), secrets)}", "Report this.")
            except httpx.HTTPError as exc:
                if course.stage == "connecting":  # a proxy that does not answer to CONNECT
                    found = self._no_connection(course, exc, secrets)
                elif course.late.is_set() or isinstance(exc, httpx.TimeoutException):
                    found = Unclear("timeout", f"no answer from {self.base_url} within {limit:g} s")
                else:
                    found = Unclear("reset", f"no answer from {self.base_url} ({clean(str(exc), secrets)})")
            finally:
                timer.cancel()
                client.cookies.clear()  # a sign-in page's cookies are not ours to carry
            return found

    def room(self) -> float:
        return 1.0 if self.gate is None else self.gate.room()

    def close(self) -> None:
        """An exchange that is under way is not waited for: it ends with the process, and its rows are unclear."""
        if self.gate is not None:
            self.gate.close()
        if self._lock.acquire(blocking=False):
            try:
                if self._client is not None:
                    self._client.close()
                    self._client = None
            finally:
                self._lock.release()

    def _open(self) -> httpx.Client:
        if self._client is None:
            # A new client costs 35 ms of CPU, a kept one 0.6 ms.
            self._client = self._connecting(self._authorities() if self._transport is None else None)
        return self._client

    def _connecting(self, context: ssl.SSLContext | None) -> httpx.Client:
        """A client; a given transport brings its own verification."""
        import httpx

        return httpx.Client(
            verify=context or True,
            transport=self._transport,
            # Proxies are for the way out: to this computer a token would leave it, and in the open.
            trust_env=self.base_url.startswith("https:"),
            follow_redirects=False,
            timeout=httpx.Timeout(self.timeout, connect=self._connect, pool=self._connect),
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=IDLE),
            headers={
                "User-Agent": f"heliograph/{heliograph.__version__}",
                "Accept": "application/json",
                "Accept-Encoding": "identity",
            },
        )

    def _authorities(self) -> ssl.SSLContext:
        """The known authorities and `ca`, and nothing from the environment.

        SSL_CERT_FILE, SSL_CERT_DIR and REQUESTS_CA_BUNDLE would put other authorities in their place, SSLKEYLOGFILE
        would write down what opens the traffic: made by hand, a context knows none of them.
        """
        import certifi

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and name, TLS 1.2 and later
        context.load_verify_locations(certifi.where())
        if self._ca is not None:
            try:
                context.load_verify_locations(self._ca)
            except OSError as exc:  # also ssl.SSLError, where the file is not PEM
                hint = "Name a readable PEM file in ca_file, or take the line out."
                raise ConfigError(f"certificates cannot be read: {exc}", hint=hint, path=self._ca) from exc
        return context

    # Why there is no connection

    def _host(self) -> tuple[str, int]:
        """Name and port as they are dialled: in lower case, and in ASCII."""
        import httpx

        url = httpx.URL(self.base_url)
        return url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80)

    def _no_connection(self, course: _Course, exc: Exception, secrets: frozenset[str]) -> NotSent:
        """The cause in words that tell a technician where to look."""
        cause: BaseException = exc
        while (inner := cause.__cause__ or cause.__context__) is not None:
            cause = inner
        host, said = self._host()[0], clean(str(cause) or str(exc), secrets)
        verified = next((one for one in _chain(exc) if isinstance(one, ssl.SSLCertVerificationError)), None)
        if verified is not None:
            return self._certificate(course, verified)
        name, port = course.dialled or self._host()
        if course.dialled not in (None, self._host()) and not isinstance(cause, ssl.SSLError):
            return NotSent("proxy", f"no way through the proxy {name}:{port}: {said or type(cause).__name__}", PROXY)
        match cause:
            case socket.gaierror():
                hint = f"Check the network and its name service (resolvectl query {name}), then base_url."
                return NotSent("dns", f"the name {name} cannot be resolved: the name service says: {said}", hint)
            case ConnectionRefusedError():
                hint = "Check base_url and the firewall on site; else the platform is down, and it is tried again."
                return NotSent("refused", f"{name}:{port} refuses the connection", hint)
            case TimeoutError():
                return NotSent("connect", f"no connection to {name}:{port} within {self._connect:g} s", NETWORK)
            case ssl.SSLError() | ConnectionResetError():
                text = f"no TLS with {host}: {said}; a captive portal, a proxy or a firewall seems to answer instead"
                return NotSent("tls", text, INTERCEPTED.format(url=self.base_url, host=host))
            case OSError(errno=errno.ENETUNREACH | errno.EHOSTUNREACH | errno.ENETDOWN):
                return NotSent("route", f"there is no way to {name}:{port}: {said}", "Check cable, router and modem.")
        return NotSent("connect", f"no connection to {self.base_url}: {said}", NETWORK)

    def _refused_by_proxy(self, course: _Course, said: str) -> NotSent:
        name, port = course.dialled or ("named in the environment", 0)
        wants = ": it wants a user and a password" if said.startswith("407") else ""
        return NotSent("proxy", f"the proxy {name}{f':{port}' if port else ''} refuses ({said}){wants}", PROXY)

    def _certificate(self, course: _Course, error: ssl.SSLCertVerificationError) -> NotSent:
        """A certificate that does not hold: whose it is, and whether the way, the platform or our clock is to blame."""
        host, code = self._host()[0], error.verify_code
        hint = INTERCEPTED.format(url=self.base_url, host=host)
        shown = self._shown(course)
        signed = f"signed by {shown.issuer}" if shown else "signed by somebody unknown"
        if code in (EARLY, EXPIRED):
            word, at = ("begins only", shown and shown.begins) if code == EARLY else ("ended", shown and shown.ends)
            text = f"the certificate of {host} {word} {f'{at:%Y-%m-%d %H:%M} UTC' if at else 'at another time'}"
            if side := self._clock_beside(course):
                text += f", but by its own clock it holds: this gateway's clock is {side} the one of {host}"
                return NotSent("clock", text, CLOCK)
            hint = f"{host} has to renew it, or this gateway's clock is wrong: compare timedatectl with a watch."
            return NotSent("certificate", text, hint)
        if code in OTHER_NAMES:
            names = f"is for {', '.join(shown.names[:3]) or shown.subject}" if shown else "is for another name"
            text = f"the certificate shown for {host} {names}, {signed}"
            cause = "a captive portal or an interception answers in its place, or base_url is wrong"
            return NotSent("certificate", f"{text}: {cause}", hint)
        if shown and shown.issuer == shown.subject:
            signed = f"signed by itself ({shown.subject})"
        text = f"the certificate of {host} is {signed}, which this gateway does not know: the connection is intercepted"
        return NotSent("certificate", f"{text}, or ca_file is missing ({error.verify_message})", hint)

    def _shown(self, course: _Course) -> certificate.Certificate | None:
        """The certificate itself: a second handshake that verifies nothing, and ends before a byte of HTTP."""
        blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE

        def look(event: str, info: Mapping[str, Any]) -> None:
            self._seen(course, event, info)
            if event.endswith(".start_tls.complete"):
                stream = info["return_value"]
                der = stream.get_extra_info("ssl_object").getpeercert(True)
                stream.close()
                raise _Shown(der)
            if event.endswith(".send_request_headers.started") and info["request"].method != b"CONNECT":
                raise _Shown(b"")  # never further than that

        try:
            self._probe(blind, look)
        except _Shown as seen:
            return certificate.read(seen.args[0])
        return None

    def _clock_beside(self, course: _Course) -> str:
        """How our clock stands to the one of a server whose certificate is good but for its time; '' when it fits.

        Chain and name are verified as ever, no token is sent, and what comes back only chooses words.
        """
        if self._now is None:
            return ""
        timeless = self._authorities()
        timeless.verify_flags |= NO_CHECK_TIME
        before = self._now()
        found = self._probe(timeless, partial(self._seen, course))
        return apart(found, before, self._now())

    def _probe(self, context: ssl.SSLContext, trace: Callable[[str, Mapping[str, Any]], None]) -> datetime | None:
        """Asks for nothing, without a token; the deadline of the exchange it belongs to ends it as well."""
        import httpx

        with self._connecting(context) as client, contextlib.suppress(httpx.HTTPError):
            request = client.build_request("HEAD", self.base_url + "/", extensions={"trace": trace})
            response = client.send(request, stream=True)
            response.close()
            return _date(response.headers.get("date", ""))
        return None

    @staticmethod
    def _answer(response: httpx.Response, late: threading.Event, secrets: frozenset[str]) -> Answer:
        """A status was had; whatever breaks from here on only leaves the body incomplete."""
        import httpx

        body = b""
        complete = response.headers.get("content-encoding", "identity") == "identity"
        if complete:
            try:
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > BODY_LIMIT:
                        complete = False
                        break
            except httpx.HTTPError:
                complete = False
        # A body without a length ends with the connection, also when it was us who cut it.
        complete = complete and not late.is_set()
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status_code, headers, body[:BODY_LIMIT], _json(body, complete), complete, secrets)

    def _seen(self, course: _Course, event: str, info: Mapping[str, Any]) -> None:
        """Remembers the connection, for there is no other way to end an answer that trickles for ever."""
        if event == "connection.connect_tcp.started":
            course.dialled = (info["host"], info["port"])
            if course.stage == "unknown":
                course.stage = "connecting"
        elif event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
        elif event == "http11.send_request_headers.started":
            if course.late.is_set():
                import httpx

                raise httpx.ConnectTimeout(f"the connection was not ready within {self.timeout:g} s")
            if info["request"].method != b"CONNECT":
                course.stage = "left"

    def _cut(self, late: threading.Event) -> None:
        late.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it was closed in the meantime
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def _chain(exc: BaseException | None) -> Iterable[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__


def _leave_out_command_line() -> None:
    """httpx imports its own command line wherever rich and pygments are installed: 4.5 MiB for nothing."""
    cast(dict[str, Any], sys.modules).setdefault("httpx._main", None)  # an import of it is then an ImportError


def checked(base_url: str) -> str:
    """The base URL without its last slash. Plain http is for this computer alone: a token would travel open."""
    try:
        parts = urlsplit(base_url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError as exc:
        raise ConfigError(f'base_url "{base_url}" cannot be read: {exc}', hint="Write https://host.") from exc
    shown = f"{parts.scheme}://{host}"
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        hint = f"Write {shown} and a path if any; secrets belong in token or login."
        raise ConfigError(f"base_url at {host} holds more than an address", hint=hint)
    if parts.scheme not in ("https", "http") or not host:
        raise ConfigError(f'base_url "{base_url}" is not an address', hint="Write https://host, and a path if any.")
    if parts.scheme == "http" and not _loopback(host):
        hint = "Write https; plain http is taken for this computer only, in rehearsals."
        raise ConfigError(f"base_url {shown} would show the token to everybody on the way", hint=hint)
    return base_url.rstrip("/")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# Names under which a token may come back in somebody's error message, with the value behind, finished or cut off.
_NAMED = re.compile(
    r"""(["']?[\w-]{0,40}(?:token|secret|passw|api-?_?key|authorization)[\w-]{0,40}["']?\s*[:=]\s*)"""
    r"""(?:"[^"]*"?|'[^']*'?|(?:bearer\s+)?[^\s,;&}"']+)""",
    re.IGNORECASE,
)
# A page's markup tells nobody anything; its title and its words may.
_TAG = re.compile(r"<(?:script|style)\b.*?(?:</(?:script|style)>|$)|<[^>]{0,500}>", re.IGNORECASE | re.DOTALL)
_BEARER = re.compile(r"\b(bearer)\s+[^\s\"',;]+", re.IGNORECASE)
_JWT = re.compile(r"\beyJ[\w-]{5,}(?:\.[\w-]*){0,2}")
_TOLD = "***"


def clean(text: str, hide: Iterable[str] = (), limit: int = EXCERPT) -> str:
    """One short printable line without secrets. Secrets go first: half a secret could not be recognised."""
    text = mask(text, hide)
    text = text[: 8 * limit]  # enough to fill a line, however much of it is masked
    text = _JWT.sub(_TOLD, _NAMED.sub(rf"\1{_TOLD}", _BEARER.sub(rf"\1 {_TOLD}", text)))
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def mask(text: str, hide: Iterable[str]) -> str:
    """The text without these secrets, in whatever form a server or a traceback may write them."""
    forms = {form for secret in hide if len(secret) > 3 for form in _forms(secret)}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, _TOLD)
    return text


def _forms(secret: str) -> set[str]:
    """The ways a secret may be written in an answer."""
    forms = {
        secret,
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        quote(secret),
        quote_plus(secret),
    }
    raw = secret.encode()
    if len(raw) < 8:  # what is left of it in other forms could be anybody's word
        return forms
    forms |= {secret.swapcase(), raw.hex(), raw.hex().upper(), quote(secret, safe="")}
    for skipped in range(3):
        # In base64 the first and last letters depend on the neighbours; what stands between is the secret's alone.
        coded = base64.b64encode(b"\0" * skipped + raw)
        inside = coded[(0, 2, 3)[skipped] : len(coded) - (0, 3, 2)[(skipped + len(raw)) % 3]].decode()
        forms |= {inside, inside.translate(str.maketrans("+/", "-_"))}
    return forms


def _json(body: bytes, complete: bool) -> Any:
    if not complete:
        return None
    try:
        return json.loads(body, parse_float=Decimal, parse_constant=_no_number)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError too
        return None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _message(found: Any) -> str:
    """The platform's message in any of the shapes seen: REDEX envelope, D-REC rule, list of body errors, error code."""
    if not isinstance(found, dict):
        return ""
    texts: list[object] = []
    for key in ("error", "message", "Message"):
        value = found.get(key)
        texts += value if isinstance(value, list) else [value]
    errors = found.get("Errors")
    for error in errors if isinstance(errors, list) else []:
        if isinstance(error, dict):
            more = error.get("Messages")
            texts += [error.get("Key"), error.get("Message"), *(more if isinstance(more, list) else [])]
    return "; ".join(dict.fromkeys(text for text in texts if isinstance(text, str) and text))


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
