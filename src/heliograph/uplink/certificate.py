"""Whose a certificate is, for words in `status`. Nothing is trusted on its account.

`python -m heliograph.uplink.certificate` reads DER on stdin. A process of its own, because cryptography would take 8 MB
of the daemon's 60 for something that happens on few sites and seldom.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime

from heliograph.seal import environment

_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Certificate:
    subject: str
    issuer: str
    names: tuple[str, ...]
    begins: datetime
    ends: datetime


def read(der: bytes) -> Certificate | None:
    """None where it cannot be read, for whatever reason: then there are fewer words."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "heliograph.uplink.certificate"],
            input=der,
            capture_output=True,
            timeout=_PATIENCE,
            check=True,
            env=environment(),
        )
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    begins, ends = (datetime.fromisoformat(found[key]) for key in ("begins", "ends"))
    return Certificate(found["subject"], found["issuer"], tuple(found["names"]), begins, ends)


def _read_here(der: bytes) -> dict[str, object]:
    from cryptography import x509

    def named(name: x509.Name) -> str:
        """The common name, else all of it; short and printable, for a stranger wrote it."""
        common = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        text = str(common[0].value) if common else name.rfc4514_string()
        return "".join(letter if letter.isprintable() else " " for letter in text)[:100] or "nobody"

    found = x509.load_der_x509_certificate(der)
    names: list[str] = []
    try:
        alternative = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names += alternative.get_values_for_type(x509.DNSName)
        names += [str(address) for address in alternative.get_values_for_type(x509.IPAddress)]
    except (x509.ExtensionNotFound, ValueError):
        names = []
    return {
        "subject": named(found.subject),
        "issuer": named(found.issuer),
        "names": [name[:100] for name in names if name.isprintable()],
        "begins": found.not_valid_before_utc.isoformat(),
        "ends": found.not_valid_after_utc.isoformat(),
    }


if __name__ == "__main__":
    print(json.dumps(_read_here(sys.stdin.buffer.read())))
