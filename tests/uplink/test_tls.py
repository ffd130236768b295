"""TLS and the way to a platform, over real sockets: what does not hold is refused, and the cause is named."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from heliograph.uplink.http import IDLE, Answer, Exchange, Http, NotSent, Unclear, fault, portal
from tests.uplink.test_http import alarm, answering, peer, whole_request

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
SOURCES = Path(__file__).parent.parent.parent / "src" / "heliograph"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


class Authority:
    """Signs certificates of servers on loopback."""

    def __init__(self, folder: Path, name: str = "Rehearsal Root") -> None:
        self.folder, self.name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.file = folder / f"{name}.pem"
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        own = _builder(name, name, self._key, -1000 * DAY, 1000 * DAY).add_extension(constraints, critical=True)
        self.file.write_bytes(own.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def server(
        self,
        *,
        address: str = "127.0.0.1",
        names: tuple[str, ...] = (),
        begins: timedelta = -DAY,
        ends: timedelta = DAY,
        itself: bool = False,
    ) -> ssl.SSLContext:
        """A server's context with a fresh certificate of ours, or one that it signed itself."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = (names or (address,))[0]
        alternative: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        if address:
            alternative.append(x509.IPAddress(ip_address(address)))
        made = _builder(subject, subject if itself else self.name, key, begins, ends)
        made = made.add_extension(x509.SubjectAlternativeName(alternative), critical=False)
        signed = made.sign(key if itself else self._key, hashes.SHA256())
        file = self.folder / f"{signed.serial_number}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context


def _builder(
    subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, begins: timedelta, ends: timedelta
) -> x509.CertificateBuilder:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    return (
        x509.CertificateBuilder()
        .subject_name(named(subject))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + begins)
        .not_valid_after(NOW + ends)
    )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@dataclass
class Server:
    """Answers every request with `{}`, and keeps what it got."""

    apart: timedelta | None = None
    """Of its clock; None: it does not tell the time."""
    got: list[bytes] = field(default_factory=list)

    def __call__(self, connection: socket.socket) -> None:
        while received := self._request(connection):
            self.got.append(received)
            dated = ""
            if self.apart is not None:
                dated = f"Date: {format_datetime(datetime.now(UTC) + self.apart, usegmt=True)}\r\n"
            body = "" if received.startswith(b"HEAD") else "{}"
            connection.sendall(f"HTTP/1.1 200 OK\r\n{dated}Content-Length: 2\r\n\r\n{body}".encode())

    @staticmethod
    def _request(connection: socket.socket) -> bytes:
        received = b""
        while b"\r\n\r\n" not in received or (received.startswith(b"POST") and not received.endswith(b'{"a":1}')):
            chunk = connection.recv(65536)
            if not chunk:
                return b""
            received += chunk
        return received


def sent(http: Http) -> Exchange:
    try:
        return http.exchange("POST", "/x", body=b'{"a":1}', token="tok-CANARY")
    finally:
        http.close()


def refused(http: Http) -> NotSent:
    found = sent(http)
    assert isinstance(found, NotSent), found
    verdict = fault(found)
    assert (verdict.state, verdict.pause_all, verdict.text) == ("due", True, found.reason)
    assert verdict.remedy
    return found


# Certificates


def test_a_named_authority_is_trusted_beside_the_known_ones(authority: Authority) -> None:
    with peer(answering, authority.server()) as port:
        found = sent(Http(f"https://127.0.0.1:{port}", ca=authority.file))
    assert isinstance(found, Answer) and found.status == 200


def test_a_stranger_authority_is_an_interception_and_gets_nothing(authority: Authority, tmp_path: Path) -> None:
    other, server = Authority(tmp_path, "Hotel Firewall"), Server()
    with peer(server, other.server()) as port:
        found = refused(Http(f"https://127.0.0.1:{port}", ca=authority.file))
    assert found.rule == "certificate"
    assert "the certificate of 127.0.0.1 is signed by Hotel Firewall, which this gateway does not know" in found.reason
    assert "the connection is intercepted, or ca_file is missing" in found.reason
    assert f"https://127.0.0.1:{port}" in found.hint
    assert server.got == []  # neither the request, nor anything of the look at the certificate


def test_a_certificate_that_signed_itself_is_named_as_that(authority: Authority) -> None:
    with peer(answering, authority.server(names=("router.lan",), itself=True)) as port:
        found = refused(Http(f"https://127.0.0.1:{port}", ca=authority.file))
    assert found.rule == "certificate" and "signed by itself (router.lan)" in found.reason


def test_a_certificate_for_another_name_is_a_portal_or_a_wrong_address(authority: Authority) -> None:
    server = Server()
    with peer(server, authority.server(address="", names=("portal.hotel.example",))) as port:
        found = refused(Http(f"https://127.0.0.1:{port}", ca=authority.file))
    assert found.rule == "certificate"
    assert "shown for 127.0.0.1 is for portal.hotel.example, signed by Rehearsal Root: a captive portal" in found.reason
    assert server.got == []


EXPIRED = {"begins": -30 * DAY, "ends": -10 * DAY}
EARLY = {"begins": 10 * DAY, "ends": 30 * DAY}


@pytest.mark.parametrize(
    ("validity", "theirs", "rule", "told"),
    [
        (EXPIRED, 0 * DAY, "certificate", r"ended \d{4}-\d\d-\d\d \d\d:\d\d UTC$"),
        (EXPIRED, None, "certificate", r"ended .* UTC$"),
        (EXPIRED, -20 * DAY, "clock", r"ended .* this gateway's clock is 20 d ahead of the one of 127\.0\.0\.1"),
        (EARLY, 0 * DAY, "certificate", r"begins only \d{4}-\d\d-\d\d \d\d:\d\d UTC$"),
        (EARLY, 20 * DAY, "clock", r"begins only .* this gateway's clock is 20 d behind the one of 127\.0\.0\.1"),
    ],
)
def test_an_expired_certificate_is_told_apart_from_a_wrong_clock(
    authority: Authority, validity: dict[str, timedelta], theirs: timedelta | None, rule: str, told: str
) -> None:
    server = Server(theirs)
    with peer(server, authority.server(**validity)) as port:  # type: ignore[arg-type]  # the keys are begins and ends
        found = refused(Http(f"https://127.0.0.1:{port}", ca=authority.file, now=lambda: datetime.now(UTC)))
    assert found.rule == rule and re.search(told, found.reason), found
    assert ("NTP" in found.hint) == (rule == "clock")
    # The question for the time carries neither token nor day.
    assert [line.split()[0] for line in server.got] == [b"HEAD"] and not any(b"CANARY" in line for line in server.got)


def test_only_a_certificate_that_holds_but_for_its_time_is_asked_for_the_time(
    authority: Authority, tmp_path: Path
) -> None:
    server = Server(-20 * DAY)
    with peer(server, Authority(tmp_path, "Hotel").server(begins=-30 * DAY, ends=-10 * DAY)) as port:
        found = refused(Http(f"https://127.0.0.1:{port}", ca=authority.file, now=lambda: NOW))
    assert found.rule == "certificate" and server.got == []


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_no_variable_brings_in_another_authority(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, str(authority.file))
    with peer(answering, authority.server()) as port:
        assert refused(Http(f"https://127.0.0.1:{port}")).rule == "certificate"


def test_no_variable_has_the_keys_of_the_traffic_written_down(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with peer(answering, authority.server()) as port:
        assert isinstance(sent(Http(f"https://127.0.0.1:{port}", ca=authority.file)), Answer)
    assert not (tmp_path / "keys").exists()
    ssl.create_default_context()  # a negative control: the usual way obeys
    assert (tmp_path / "keys").exists()


def test_what_could_switch_the_verification_off_stands_where_nothing_is_sent() -> None:
    """The two contexts that look at a bad certificate, by the functions they stand in."""
    weak = re.compile(r"CERT_NONE|check_hostname|verify_flags|NO_CHECK_TIME \||verify=False|_create_unverified")
    found: dict[str, list[str]] = {}
    for path in SOURCES.rglob("*.py"):
        within = ""
        for line in path.read_text().splitlines():
            if match := re.match(r"    def (\w+)", line):
                within = match[1]
            if weak.search(line) and not line.lstrip().startswith("#"):
                found.setdefault(f"{path.name} {within}", []).append(line.strip())
    assert sorted(found) == ["http.py _clock_beside", "http.py _shown"], found


# Names, ports, ways


@pytest.mark.parametrize(
    ("given", "shown"),
    [("platform", "platform"), ("Platform", "platform"), ("bücher", "xn--bcher-kva")],
)
def test_an_unknown_name_is_the_name_services_matter(given: str, shown: str) -> None:
    found = refused(Http(f"https://{given}.invalid"))
    assert found.rule == "dns" and f"the name {shown}.invalid cannot be resolved" in found.reason
    assert "name service" in found.hint


def test_a_refused_connection_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    found = refused(Http(f"https://127.0.0.1:{port}"))
    assert (found.rule, found.reason) == ("refused", f"127.0.0.1:{port} refuses the connection")


def test_a_server_that_speaks_no_tls_is_somebody_in_between() -> None:
    def plain(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with peer(plain) as port:
        found = refused(Http(f"https://127.0.0.1:{port}"))
    assert found.rule == "tls" and "a captive portal" in found.reason


def test_a_handshake_that_nobody_answers_ends_before_anything_left() -> None:
    def silent(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass

    with peer(silent) as port:
        found = refused(Http(f"https://127.0.0.1:{port}", connect=0.2))
    assert found.rule == "connect" and "within 0.2 s" in found.reason


def test_a_peer_that_vanished_is_unclear_at_the_deadline_and_not_asked_again() -> None:
    """Half-open: what is sent is taken by the network, and nobody ever answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:  # connections are taken by the kernel alone
        found = sent(
            Http(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0.15, timer=alarm(threading.Event()))
        )
    assert isinstance(found, Unclear) and found.rule == "timeout"


# Connections that are kept


def test_a_kept_connection_that_the_server_closed_meanwhile_costs_no_doubt() -> None:
    closed, served = threading.Event(), []

    def once(connection: socket.socket) -> None:
        served.append(whole_request(connection))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        connection.close()
        closed.set()

    with peer(once) as port:
        http = Http(f"http://127.0.0.1:{port}")
        for _ in range(3):
            closed.clear()
            assert isinstance(http.exchange("POST", "/x", body=b'{"a":1}'), Answer)
            assert closed.wait(10)
        http.close()
    assert len(served) == 3


def test_a_connection_closed_while_a_request_is_under_way_is_unclear() -> None:
    """Nothing proves that the server did not read it."""
    requests = []

    def second_dies(connection: socket.socket) -> None:
        while whole_request(connection):
            requests.append(1)
            if len(requests) > 1:
                return
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with peer(second_dies) as port:
        http = Http(f"http://127.0.0.1:{port}")
        found = [http.exchange("POST", "/x", body=b'{"a":1}') for _ in range(2)]
        http.close()
    assert isinstance(found[1], Unclear) and found[1].rule == "reset"


def test_an_idle_connection_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    connections: list[socket.socket] = []

    def counting(connection: socket.socket) -> None:
        connections.append(connection)
        answering(connection)

    at = [1000.0]
    monkeypatch.setattr("httpcore._sync.http11.time.monotonic", lambda: at[0])
    with peer(counting) as port:
        http = Http(f"http://127.0.0.1:{port}")
        for idle in (0, IDLE - 1, IDLE + 1):
            at[0] += idle
            assert isinstance(http.exchange("POST", "/x", body=b'{"a":1}'), Answer)
            assert len(connections) == (1 if idle < IDLE else 2)
        http.close()


# Proxies


@dataclass
class Proxy:
    """Answers CONNECT: by a tunnel, or by what `says` says."""

    says: bytes = b""
    asked: list[bytes] = field(default_factory=list)

    def __call__(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(65536)
        self.asked.append(head)
        if self.says:
            connection.sendall(self.says)
            return
        host, _, port = head.split()[1].decode().partition(":")
        with socket.create_connection((host, int(port))) as onward:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_copy, args=(onward, connection), daemon=True)
            back.start()
            _copy(connection, onward)
            back.join(5)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(65536):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def proxied(monkeypatch: pytest.MonkeyPatch, proxy: Callable[[socket.socket], None]) -> Iterator[int]:
    with peer(proxy) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://someone:pass-CANARY@127.0.0.1:{port}")
        yield port


def test_a_proxy_from_the_environment_is_used_and_sees_neither_token_nor_day(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy()
    with proxied(monkeypatch, proxy), peer(answering, authority.server()) as port:
        assert isinstance(sent(Http(f"https://127.0.0.1:{port}", ca=authority.file)), Answer)
    (asked,) = proxy.asked
    assert asked.startswith(f"CONNECT 127.0.0.1:{port} ".encode()) and b"tok-CANARY" not in asked


def test_no_proxy_leaves_the_platform_out(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with proxied(monkeypatch, proxy), peer(answering, authority.server()) as port:
        assert isinstance(sent(Http(f"https://127.0.0.1:{port}", ca=authority.file)), Answer)
    assert proxy.asked == []


def test_plain_http_to_this_computer_never_goes_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would carry the token out of this computer, in the open."""
    proxy = Proxy(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    with peer(proxy) as through, peer(answering) as port:
        for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{through}")
        assert isinstance(sent(Http(f"http://127.0.0.1:{port}")), Answer)
    assert proxy.asked == []


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407 .*it wants a user and a password"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "refuses .403 Forbidden"),
        (b"nonsense\r\n\r\n", "no way through the proxy"),
        (b"HTTP/1.1 200 OK\r\n", "no way through the proxy"),
    ],
)
def test_a_proxy_that_refuses_is_named_and_nothing_left(
    monkeypatch: pytest.MonkeyPatch, says: bytes, told: str
) -> None:
    with proxied(monkeypatch, Proxy(says)) as port:
        found = refused(Http("https://platform.example"))
    assert found.rule == "proxy" and re.search(told, found.reason) and f"127.0.0.1:{port}" in found.reason
    assert "HTTPS_PROXY" in found.hint and "CANARY" not in found.reason + found.hint


def test_a_proxy_that_intercepts_is_named_by_its_authority(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxied(monkeypatch, Proxy()), peer(answering, Authority(tmp_path, "Corp Proxy").server()) as port:
        found = refused(Http(f"https://127.0.0.1:{port}", ca=authority.file))
    assert found.rule == "certificate" and "signed by Corp Proxy" in found.reason


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "ftp://me:pass-CANARY@127.0.0.1", "http://[::1"])
def test_a_proxy_that_cannot_be_used_is_told_at_every_round(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    http = Http("https://platform.example")
    for _ in range(2):
        found = refused(http)
        assert found.rule == "proxy" and "CANARY" not in found.reason + found.hint and "http://host:port" in found.hint


# Portals


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_carries_a_token_anywhere(status: int) -> None:
    elsewhere = Server()
    with peer(elsewhere) as other:

        def redirecting(connection: socket.socket) -> None:
            whole_request(connection)
            to = f"http://127.0.0.1:{other}/sign-in?mac=aa:bb&token=CANARY"
            connection.sendall(f"HTTP/1.1 {status} Elsewhere\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode())

        with peer(redirecting) as port:
            found = sent(Http(f"http://127.0.0.1:{port}"))
    assert isinstance(found, Answer) and found.status == status and elsewhere.got == []
    verdict = portal(found)
    assert verdict is not None and verdict.state == "unclear" and verdict.pause_all
    assert f"redirect to http://127.0.0.1:{other}/sign-in" in verdict.text and "CANARY" not in verdict.text


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n<html>Welcome!<", "the sign-in of a captive portal perhaps"),
        (b"HTTP/1.1 511 Sign in\r\nContent-Length: 6\r\n\r\n<html>", "the network wants a sign-in"),
    ],
)
def test_a_captive_portal_is_called_that(answer: bytes, told: str) -> None:
    def hotel(connection: socket.socket) -> None:
        whole_request(connection)
        connection.sendall(answer)

    with peer(hotel) as port:
        found = sent(Http(f"http://127.0.0.1:{port}"))
    assert isinstance(found, Answer)
    verdict: Any = portal(found)
    assert told in verdict.text and "browser" in verdict.remedy


def test_an_empty_success_says_what_it_may_be() -> None:
    def hotel(connection: socket.socket) -> None:
        whole_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with peer(hotel) as port:
        found = sent(Http(f"http://127.0.0.1:{port}"))
    assert isinstance(found, Answer)
    assert found.words() == "200 and nothing else, from a captive portal or a proxy perhaps"
