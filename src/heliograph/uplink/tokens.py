"""Secrets and tokens: read when needed, renewed ahead and once, and never part of a text, a repr or an error."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from heliograph.core import durations
from heliograph.core.delivery import CAP, FLOOR
from heliograph.core.errors import ConfigError, HeliographError, UplinkError
from heliograph.uplink.http import APART, CLOCK, PORTAL, Answer, Exchange, Http, NotSent, apart, fault, stranger

SECRET_LIMIT = 16 * 1024
# drec.md section 2: the session row is written behind the answer to the login.
SESSION_PAUSE = 0.5
# redex.md section 2, AUTH: an access token lives 3,600 s; drec.md section 2: 180 days, fixed in their code.
REDEX_LIFE = timedelta(seconds=3600)
DREC_LIFE = timedelta(days=180)
DREC_AHEAD = timedelta(days=7)
# How long to leave a platform alone whose token is no good; another token ends it earlier.
TOKEN_WAIT = timedelta(minutes=5)
NEW_TOKEN = "Put a new token in its place; a file is read again by itself, and the days that wait are sent then."
# The hash of a longer one's token does not fit its column (section 2).
DREC_ADDRESS = 45


class Secret:
    """A secret by the place where it stands. A changed file is seen at the next read, without a restart."""

    def __init__(
        self,
        *,
        file: Path | None = None,
        env: str | None = None,
        credential: str | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        if sum(place is not None for place in (file, env, credential)) != 1:
            raise ConfigError("a secret needs exactly one of file, env or credential", hint="Name its one place.")
        self._file, self._env, self._credential, self._environ = file, env, credential, environ
        self._seen: tuple[int, int, int] | None = None
        self._value = ""
        self._kept_back: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """The place, for messages."""
        if self._file is not None:
            return str(self._file)
        return f"environment variable {self._env}" if self._env is not None else f"credential {self._credential}"

    def read(self, *, fresh: bool = False) -> str:
        """Raises ConfigError when there is none. `fresh` looks again even if the file seems unchanged."""
        if self._env is not None:
            return self._kept(self._environ.get(self._env, ""), f"Set {self._env} for the service.")
        path, hint = self._path()
        try:
            found = path.stat()
            mark = (found.st_mtime_ns, found.st_size, found.st_ino)
            if mark == self._seen and self._value and not fresh:
                return self._value
            with path.open("rb") as file:
                content = file.read(SECRET_LIMIT + 1)
        except OSError as exc:
            raise ConfigError(f"no secret: {exc.strerror or exc}", hint=hint, path=path) from None
        if len(content) > SECRET_LIMIT:
            raise ConfigError("too long for a secret", hint="Write the secret alone into the file.", path=path)
        value = self._kept(content.decode("utf-8", "replace"), hint)
        self._seen = mark
        return value

    def changed(self) -> bool:
        """Whether another value stands there than was read last."""
        before = self._value
        try:
            return self.read(fresh=True) != before
        except ConfigError:
            return False

    def known(self) -> frozenset[str]:
        """What was read lately, so that it can be kept out of texts."""
        return frozenset(self._kept_back)

    def _path(self) -> tuple[Path, str]:
        if self._file is not None:
            return self._file, "Write the secret into this file, readable for the service only."
        directory, name = self._environ.get("CREDENTIALS_DIRECTORY"), self._credential or ""
        hint = f"Put it into /etc/credstore/{name} and restart the service; run by hand there are no credentials."
        if not directory:
            raise ConfigError(f"credential {name} is not there: the service was started without any", hint=hint)
        if "/" in name or name in ("", ".", ".."):
            raise ConfigError(f'"{name}" is not the name of a credential', hint="Write its name without a path.")
        return Path(directory) / name, hint

    def _kept(self, text: str, hint: str) -> str:
        value = text.strip()
        if not value:
            raise ConfigError(f"{self.where} holds no secret", hint=hint)
        if not value.isprintable():
            raise ConfigError(f"{self.where} holds more than one line or strange characters", hint=hint)
        if value != self._value:
            self._value, self._kept_back = value, (value, *self._kept_back)[:4]
        return value


def expires(token: str) -> datetime | None:
    """`exp` of a JWT, unverified (that is the platform's matter); None where there is none to read."""
    return _when(token, "exp")


def _when(token: str, name: str) -> datetime | None:
    at = claim(token, name)
    try:
        return datetime.fromtimestamp(at, UTC) if isinstance(at, int | float) else None
    except (ValueError, OverflowError, OSError):
        return None


def claim(token: str, name: str) -> object:
    """A claim of a JWT as it stands there, unverified; None where there is none to read."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return None
    return claims.get(name) if isinstance(claims, dict) else None


def bearer(token: str, where: str) -> str:
    """The token, once it is known to fit into a header."""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{where} holds no token", hint="A token is one word of letters, digits and signs.")
    return token


class TokenSource(Protocol):
    """Where a platform's token comes from. Safe to use from several threads."""

    def token(self, now: datetime) -> str:
        """A token to send with; raises ConfigError or UplinkError where there is none."""
        ...

    def renew(self, now: datetime, refused: str) -> bool:
        """After `refused` was refused: whether there is another one now. Several callers cause one renewal."""
        ...

    def expiry(self) -> datetime | None: ...

    def changed(self) -> bool:
        """Whether another secret stands in its place than the one that was used last."""
        ...

    @property
    def by_hand(self) -> bool:
        """Somebody has to put a new one in its place before it ends."""
        ...

    def secrets(self) -> frozenset[str]:
        """What must not show in any text."""
        ...


class StaticToken:
    """A token somebody else renews: a device JWT in a file, the environment or a credential."""

    by_hand = True

    def __init__(self, secret: Secret) -> None:
        self._secret = secret
        self._used = ""

    def token(self, now: datetime) -> str:
        del now
        self._used = ""
        self._used = bearer(self._secret.read(), self._secret.where)
        return self._used

    def changed(self) -> bool:
        try:
            return self._secret.read(fresh=True) != self._used
        except ConfigError:
            return False

    def renew(self, now: datetime, refused: str) -> bool:
        del now
        return self._secret.read(fresh=True) != refused

    def expiry(self) -> datetime | None:
        try:
            return expires(self._secret.read())
        except ConfigError:  # `token` tells
            return None

    def secrets(self) -> frozenset[str]:
        return self._secret.known()


@dataclass(frozen=True, slots=True)
class Grant:
    """What a login gave."""

    token: str = field(repr=False)
    renew_at: datetime
    expires: datetime
    refresh: str | None = field(default=None, repr=False)


class Grants(Protocol):
    """A platform's way to give tokens."""

    def get(self, now: datetime, refresh: str | None, hide: frozenset[str]) -> Grant:
        """Raises ConfigError or UplinkError; `hide` are earlier tokens, which an answer may quote."""
        ...

    def secrets(self) -> frozenset[str]: ...

    def changed(self) -> bool:
        """Whether one of the secrets is another one than at the last login."""
        ...


class Login:
    """A token from a login, kept for all who need it and renewed before it expires."""

    by_hand = False

    def __init__(self, grants: Grants) -> None:
        self._grants = grants
        self._lock = threading.Lock()
        self._grant: Grant | None = None
        self._hide: tuple[str, ...] = ()

    def token(self, now: datetime) -> str:
        with self._lock:
            grant = self._grant
            if grant is None or now >= grant.expires:
                grant = self._fetch(now)
            elif now >= grant.renew_at:
                try:
                    grant = self._fetch(now)
                except HeliographError:  # the old one is good for a while yet, and its end is shown
                    self._grant = replace(grant, renew_at=now + (grant.expires - now) / 4)
            return grant.token

    def renew(self, now: datetime, refused: str) -> bool:
        with self._lock:
            if self._grant is not None and self._grant.token != refused:
                return True  # another caller has just done it
            if self._grant is not None:
                self._grant = replace(self._grant, expires=now, renew_at=now)
            return self._fetch(now).token != refused

    def expiry(self) -> datetime | None:
        return None if self._grant is None else self._grant.expires

    def secrets(self) -> frozenset[str]:
        return self._grants.secrets() | frozenset(self._hide)

    def changed(self) -> bool:
        return self._grants.changed()

    def _fetch(self, now: datetime) -> Grant:
        self._grant = self._grants.get(now, self._grant.refresh if self._grant else None, frozenset(self._hide))
        # The tokens before this one may still stand in somebody's answer.
        self._hide = (self._grant.token, self._grant.refresh or "", *self._hide)[:4]
        return self._grant


class RedexGrants:
    """`api_key` grant, and `refresh_token` while there is one (redex.md section 2)."""

    PATH = "/public/v2/connect/token"

    def __init__(self, http: Http, api_key: Secret, client_id: Secret, client_secret: Secret) -> None:
        self._http = http
        self._api_key, self._id, self._secret = api_key, client_id, client_secret

    def get(self, now: datetime, refresh: str | None, hide: frozenset[str]) -> Grant:
        client = {"ClientId": self._id.read(), "ClientSecret": self._secret.read()}
        if refresh:
            body = {"RefreshToken": refresh, "GrantType": "refresh_token", **client}
            found = self._post(self.PATH + "/refresh", body, hide)
            # A 429 would meet the second grant as well: one account, one quota.
            if not (isinstance(found, Answer) and 400 <= found.status < 500 and found.status != 429):
                return self._grant(found, now, refresh)
        body = {"ApiKey": self._api_key.read(), "GrantType": "api_key", **client}
        return self._grant(self._post(self.PATH, body, hide), now, None)

    def secrets(self) -> frozenset[str]:
        return self._api_key.known() | self._id.known() | self._secret.known()

    def changed(self) -> bool:
        # All of them, for each is looked at anew by that.
        return True in [secret.changed() for secret in (self._api_key, self._id, self._secret)]

    def _post(self, path: str, body: Mapping[str, str], hide: frozenset[str]) -> Exchange:
        return self._http.exchange("POST", path, body=json.dumps(body).encode(), hide=self.secrets() | hide)

    def _grant(self, found: Exchange, now: datetime, refresh: str | None) -> Grant:
        data = _given(found, now, "Check api_key, client_id and client_secret with the platform.").get("Data")
        token = data.get("AccessToken") if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(token, str):
            raise UplinkError("the login was answered without a token", hint="Check base_url.", wait=FLOOR)
        life = _seconds(data.get("ExpiresIn")) or REDEX_LIFE
        newest = data.get("RefreshToken")
        refresh = newest if isinstance(newest, str) and newest else refresh
        return Grant(bearer(token, "the login's answer"), now + life * 0.8, now + life, refresh)


class DrecGrants:
    """User name and password; the token says itself when it ends, and there is no refresh (drec.md section 2)."""

    def __init__(self, http: Http, username: Secret, password: Secret) -> None:
        self._http, self._username, self._password = http, username, password

    def get(self, now: datetime, refresh: str | None, hide: frozenset[str]) -> Grant:
        del refresh
        body = {"username": self._username.read(), "password": self._password.read()}
        found = self._http.exchange("POST", "/auth/login", body=json.dumps(body).encode(), hide=self.secrets() | hide)
        token = _given(found, now, "Check username and password with the platform.").get("accessToken")
        if not isinstance(token, str):
            raise UplinkError("the login was answered without a token", hint="Check base_url.", wait=FLOOR)
        end = expires(token) or now + DREC_LIFE
        if end <= now:
            text = f"by this gateway's clock the token of a login just made ended at {end:%Y-%m-%d %H:%M} UTC"
            raise UplinkError(f"{text}: that clock is ahead of the platform's", hint=CLOCK, wait=TOKEN_WAIT)
        ahead = min(DREC_AHEAD, (end - now) / 5)  # a platform may give shorter ones some day
        return Grant(bearer(token, "the login's answer"), end - ahead, end)

    def secrets(self) -> frozenset[str]:
        return self._username.known() | self._password.known()

    def changed(self) -> bool:
        return True in [secret.changed() for secret in (self._username, self._password)]


def redex_login(http: Http, api_key: Secret, client_id: Secret, client_secret: Secret) -> Login:
    return Login(RedexGrants(http, api_key, client_id, client_secret))


def too_long(address: str) -> str:
    """What is wrong with an e-mail address, if anything: D-REC keeps no session whose token is too long (section 2)."""
    if len(address) <= DREC_ADDRESS:
        return ""
    return (
        f"the e-mail address of the login has {len(address)} characters. D-REC forgets the logins of addresses longer"
        f' than {DREC_ADDRESS} and answers "Token revoked" to every call: register with a shorter one.'
    )


def drec_login(http: Http, username: Secret, password: Secret) -> Login:
    return Login(DrecGrants(http, username, password))


def _given(found: Exchange, now: datetime, hint: str) -> Mapping[str, Any]:
    """The JSON object of a successful login, or the reason why there is none."""
    if not isinstance(found, Answer):
        verdict = fault(found)
        raise UplinkError(f"no login: {verdict.text}", hint=verdict.remedy, wait=FLOOR)
    if found.success and isinstance(found.json, dict):
        return found.json
    if cause := stranger(found):
        raise UplinkError(f"no login: {cause}", hint=PORTAL, wait=FLOOR)
    if found.status == 429:
        raise UplinkError(
            f"login put off: {found.words()}",
            hint="It is tried again.",
            wait=found.retry_after(now) or FLOOR,
            busy=True,
        )
    if 400 <= found.status < 500:
        raise UplinkError(f"login refused: {found.words()}", hint=hint, wait=CAP)
    if found.success:
        # Not quoted: whatever this is, it may hold a token in a form that nobody foresaw.
        raise UplinkError("the login was answered with something that is not JSON", hint="Check base_url.", wait=FLOOR)
    raise UplinkError(f"no login: {found.words()}", hint="It is tried again.", wait=FLOOR)


def _seconds(value: object) -> timedelta | None:
    """ExpiresIn is documented as a number and sampled as text."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10**9:
        return None
    return timedelta(seconds=value)


def unauthorized(answer: Answer) -> bool:
    return answer.status == 401


def never(answer: Answer) -> bool:
    del answer
    return False


class Authorized:
    """An `Http` with a token: on a refused one it renews once and repeats the request once."""

    def __init__(
        self,
        http: Http,
        tokens: TokenSource,
        now: Callable[[], datetime],
        *,
        refused: Callable[[Answer], bool] = unauthorized,
        hasty: Callable[[Answer], bool] = never,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`hasty` tells an answer that means: the token is good, but not known everywhere yet."""
        self.http = http
        self.tokens = tokens
        self._now, self._refused, self._hasty, self._sleep = now, refused, hasty, sleep

    def exchange(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Exchange:
        """A refused token means that nothing was stored, so the repeat is safe."""

        def once(token: str) -> Exchange:
            return self.http.exchange(method, path, query=query, body=body, token=token, hide=self.tokens.secrets())

        def patiently(token: str) -> Exchange:
            found = once(token)
            if not (isinstance(found, Answer) and self._hasty(found)):
                return found
            self._sleep(SESSION_PAUSE)
            return once(token)

        now = self._now()
        try:
            token = self.tokens.token(now)
            if self.tokens.by_hand and (end := expires(token)) is not None and end <= now:
                return self._ended(end)
            found = patiently(token)
            if isinstance(found, Answer) and self._refused(found) and self.tokens.renew(now, token):
                token = self.tokens.token(now)
                found = patiently(token)  # a fresh login is the one that may not be known yet
        except (ConfigError, UplinkError) as exc:
            if isinstance(exc, ConfigError):
                return NotSent("config", exc.message, exc.hint)
            return NotSent("login", exc.message, exc.hint, exc.wait, exc.busy)
        if isinstance(found, Answer) and self._refused(found):
            return self._blamed(found, token, now)
        return found

    def _ended(self, end: datetime) -> NotSent:
        """No day leaves with a token that has ended. The platform is asked for the time, for ours may be wrong."""
        before = self._now()
        theirs = self.http.date()
        side = apart(theirs, before, self._now())
        if side and theirs is not None and theirs < end:
            text = f"by this gateway's clock the token ended at {end:%Y-%m-%d %H:%M} UTC, but that clock is {side}"
            return NotSent("clock", f"{text} the platform's; nothing was sent", CLOCK, TOKEN_WAIT)
        text = f"the token ended at {end:%Y-%m-%d %H:%M} UTC; nothing was sent"
        return NotSent("token", text, NEW_TOKEN, TOKEN_WAIT)

    def _blamed(self, found: Answer, token: str, before: datetime) -> Exchange:
        """Whether the token or our clock is to blame for a refusal; nothing was stored in either case."""
        side, issued = apart(found.date(), before, self._now()), _when(token, "iat")
        if not side and found.date() is None and issued is not None and issued - self._now() > APART:
            side = f"at least {durations.shown(issued - self._now())} behind"  # it was made in our future
        if not side:
            return replace(found, note="the token was refused")
        text = f"the token was refused, and this gateway's clock is {side} the platform's ({found.words()})"
        return NotSent("clock", text, CLOCK, TOKEN_WAIT)
