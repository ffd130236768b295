"""The hash chain: how an entry becomes bytes, and how bytes are linked. Fixed for ever; `deploy/PROOF.md` explains it.

An entry's body is JSON in one canonical form: keys sorted by code point, no white space, UTF-8, only objects, arrays,
strings, integers, true, false and null (RFC 8785 for documents of this kind). With D = SHA-256 of the body,

    hash(n) = SHA-256(hash(n - 1) || D(n)),   hash(0) = 32 zero bytes,

so that an entry can be shown by its D alone where its content is nobody's business.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

GENESIS = bytes(32)


def canonical(value: Any) -> bytes:
    """The one encoding of a value. Raises TypeError for what has no place in it, such as a float."""
    _check(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def _check(value: Any) -> None:
    match value:
        case None | bool() | int() | str():
            return
        case dict():
            if not all(isinstance(key, str) for key in value):
                raise TypeError("keys are texts")
            for inner in value.values():
                _check(inner)
        case list() | tuple():
            for inner in value:
                _check(inner)
        case _:
            raise TypeError(f"{type(value).__name__} has no canonical form")


def digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


def link(previous: bytes, of_body: bytes) -> bytes:
    """hash(n) from hash(n - 1) and D(n)."""
    return hashlib.sha256(previous + of_body).digest()


def told(at: datetime) -> str:
    """A moment as it stands in a body."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry: what everything before it can be checked against. `seq` 0 is an empty chain."""

    seq: int = 0
    hash: bytes = GENESIS


@dataclass(frozen=True, slots=True)
class Entry:
    seq: int
    body: bytes
    hash: bytes

    @property
    def content(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A head, signed with the device's key (Ed25519, 32 bytes; the signature has 64)."""

    seq: int
    hash: bytes
    at: datetime
    site: str
    key: bytes
    signature: bytes = b""

    @property
    def message(self) -> bytes:
        """What is signed."""
        content = {"at": told(self.at), "hash": self.hash.hex(), "seq": self.seq, "site": self.site}
        return b"heliograph checkpoint\n" + canonical(content)


def pack_message(manifest: Mapping[str, Any]) -> bytes:
    """What is signed at the end of an evidence pack."""
    return b"heliograph pack\n" + canonical(dict(manifest))


def fingerprint(key: bytes) -> str:
    """A public key as people compare it: the first 16 bytes of its SHA-256, in groups."""
    text = hashlib.sha256(key).hexdigest()[:32]
    return "-".join(text[at : at + 4] for at in range(0, 32, 4))
