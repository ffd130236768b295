"""One HTTP exchange, told apart by what may have left. The only module that knows httpx.

Whether a day may be sent again depends on one question: can the platform have got it? So an exchange ends in one
of three ways, and nothing that the network can cause is raised:

NotSent   no byte of the request left: the days are due again
Unclear   it may have arrived, and no status came back: the days are read back
Answer    a status came back; what it means is the dialect's matter
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import socket
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, quote_plus, urlsplit

import heliograph
from heliograph.core.delivery import FLOOR, Verdict
from heliograph.core.errors import ConfigError

if TYPE_CHECKING:
    import ssl

    import httpx

BODY_LIMIT = 256 * 1024
EXCERPT = 300
# A Retry-After beyond a day is a mistake of somebody's clock; asking once a day harms nobody.
LONGEST_WAIT = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class NotSent:
    """No byte of the request left this machine."""

    rule: str
    reason: str
    hint: str = ""
    wait: timedelta | None = None


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

    @property
    def empty(self) -> bool:
        return self.complete and not self.body.strip()

    @property
    def success(self) -> bool:
        return 200 <= self.status < 300

    def words(self) -> str:
        """What the platform says, for people: its message where it has one, else the beginning of the body."""
        said = _message(self.json) or self.body.decode("utf-8", "replace")
        return f"{self.status} {clean(said, self.hide)}".strip()

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
        hint = found.hint or "Check the network, the name service and base_url; the days stay due and nothing is lost."
        return Verdict("due", found.rule, found.reason, hint, found.wait or FLOOR, pause_all=True)
    return Verdict("unclear", found.rule, found.reason, "The days are read back before anything is sent again.")


def portal(answer: Answer) -> Verdict | None:
    """Somebody between us and the platform answered: a redirect, a sign-in page, or a page instead of JSON."""
    page = "html" in answer.headers.get("content-type", "") or answer.body.lstrip()[:1] == b"<"
    if 300 <= answer.status < 400 or answer.status == 511 or (answer.success and page):
        remedy = "A sign-in page, a proxy or a wrong base_url answered instead of the platform; open base_url on site."
        return Verdict("unclear", "portal", answer.words(), remedy, FLOOR, pause_all=True)
    return None


class Http:
    """One kept connection to one platform; one request at a time."""

    def __init__(
        self,
        base_url: str,
        *,
        timeout: float = 60.0,
        connect: float = 10.0,
        ca: Path | None = None,
        transport: httpx.BaseTransport | None = None,
        timer: type[threading.Timer] = threading.Timer,
    ) -> None:
        """`timeout` ends the whole exchange, `connect` the part before anything leaves; both in real seconds.

        `ca` is added to the known authorities; there is no switch to leave the verification out. Tests bring their own
        `transport`, and a `timer` that fires when the other side is ready for it.
        """
        self.base_url = checked(base_url)
        self.timeout = timeout
        self.requests = 0
        self._connect = connect
        self._ca = ca
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
        _leave_out_command_line()
        import httpx

        secrets = frozenset(hide) | ({token} if token else frozenset())
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        with self._lock:
            client = self._open()
            late = threading.Event()
            timer = self._timer(self.timeout, self._cut, [late])
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
                    extensions={"trace": partial(self._seen, late)},
                ) as response:
                    found: Exchange = self._answer(response, late, secrets)
            # ConnectError covers refused, no route, unknown name and every TLS failure before the request.
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError) as exc:
                found = NotSent("connect", f"no connection to {self.base_url}: {clean(str(exc), secrets)}")
            except (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL) as exc:
                found = NotSent("request", f"no request could be made: {clean(str(exc), secrets)}", "Report this.")
            except httpx.TimeoutException:
                found = Unclear("timeout", f"no answer from {self.base_url} within {self.timeout:g} s")
            except httpx.HTTPError as exc:
                why = f"within {self.timeout:g} s" if late.is_set() else f"({clean(str(exc), secrets)})"
                found = Unclear("timeout" if late.is_set() else "reset", f"no answer from {self.base_url} {why}")
            finally:
                timer.cancel()
                client.cookies.clear()  # a sign-in page's cookies are not ours to carry
            if not isinstance(found, NotSent):
                self.requests += 1
            return found

    def close(self) -> None:
        """An exchange that is under way is not waited for: it ends with the process, and its rows are unclear."""
        if self._lock.acquire(blocking=False):
            try:
                if self._client is not None:
                    self._client.close()
                    self._client = None
            finally:
                self._lock.release()

    def _open(self) -> httpx.Client:
        import httpx

        if self._client is None:
            # A new client costs 35 ms of CPU, a kept one 0.6 ms.
            self._client = httpx.Client(
                verify=self._authorities() if self._transport is None else True,  # a given one brings its own
                transport=self._transport,
                follow_redirects=False,
                timeout=httpx.Timeout(self.timeout, connect=self._connect, pool=self._connect),
                limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
                headers={
                    "User-Agent": f"heliograph/{heliograph.__version__}",
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                },
            )
        return self._client

    def _authorities(self) -> ssl.SSLContext:
        import httpx

        context = httpx.create_ssl_context()
        if self._ca is not None:
            try:
                context.load_verify_locations(self._ca)
            except OSError as exc:  # also ssl.SSLError, where the file is not PEM
                hint = "Name a readable PEM file in ca_file, or take the line out."
                raise ConfigError(f"certificates cannot be read: {exc}", hint=hint, path=self._ca) from exc
        return context

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

    def _seen(self, late: threading.Event, event: str, info: Mapping[str, Any]) -> None:
        """Remembers the connection, for there is no other way to end an answer that trickles for ever."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._socket = info["return_value"].get_extra_info("socket")
        elif event == "http11.send_request_headers.started" and late.is_set():
            import httpx

            raise httpx.ConnectTimeout(f"the connection was not ready within {self.timeout:g} s")

    def _cut(self, late: threading.Event) -> None:
        late.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it was closed in the meantime
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


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
_BEARER = re.compile(r"\b(bearer)\s+[^\s\"',;]+", re.IGNORECASE)
_JWT = re.compile(r"\beyJ[\w-]{5,}(?:\.[\w-]*){0,2}")
_TOLD = "***"


def clean(text: str, hide: Iterable[str] = (), limit: int = EXCERPT) -> str:
    """One short printable line without secrets. Secrets go first: half a secret could not be recognised."""
    forms = {form for secret in hide if len(secret) > 3 for form in _forms(secret)}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, _TOLD)
    text = text[: 8 * limit]  # enough to fill a line, however much of it is masked
    text = _JWT.sub(_TOLD, _NAMED.sub(rf"\1{_TOLD}", _BEARER.sub(rf"\1 {_TOLD}", text)))
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _forms(secret: str) -> set[str]:
    """The ways a secret may be written in an answer."""
    return {
        secret,
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        quote(secret),
        quote_plus(secret),
    }


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
