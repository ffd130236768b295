"""The device's Ed25519 key: signs checkpoints and packs, and checks what others signed.

`python -m heliograph.seal KEYFILE` signs what comes on stdin. A process of its own, because cryptography would take
8 MB of the daemon's 60 for one signature a day.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from heliograph.core.errors import StoreError

FILE = "device.key"
_PATIENCE = 60.0


# What a Python needs to find itself and our package. Secrets may stand in the rest (`{ env = "..." }`, HTTPS_PROXY).
_HANDED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")


def environment() -> dict[str, str]:
    """What a process that we start gets to see of our environment."""
    return {name: value for name, value in os.environ.items() if name in _HANDED_ON}


class Signed(NamedTuple):
    key: bytes
    """Public, 32 bytes."""
    signature: bytes


def sign(path: Path, message: bytes) -> Signed:
    """Signs with the key in `path`, which is made when there is none."""
    hint = f"Run as the service's user: sudo -u heliograph heliograph ... ({path} is its alone)"
    if path.exists() and not os.access(path, os.R_OK):
        raise StoreError(f"the device's key {path} cannot be read", hint=hint)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "heliograph.seal", str(path)],
            input=message,
            capture_output=True,
            timeout=_PATIENCE,
            check=True,
            env=environment(),
        )
        found = json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise StoreError(f"the device's key {path} cannot be used: {last}", hint=hint) from error
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise StoreError(f"nothing could be signed: {error}", hint="It is tried again within ten minutes.") from error
    return Signed(bytes.fromhex(found["key"]), bytes.fromhex(found["signature"]))


def verify(key: bytes, message: bytes, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _sign_here(path: Path, message: bytes) -> Signed:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not path.exists():
        fresh = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _keep(path, fresh)
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("not an Ed25519 key")
    public = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return Signed(public, key.sign(message))


def _keep(path: Path, content: bytes) -> None:
    """Whole or not at all, also over a power cut: a key that signed once must still be there afterwards."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, content)
        os.fsync(handle)
    finally:
        os.close(handle)
    try:
        os.link(draft, path)  # fails where another process was quicker: then its key counts
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


if __name__ == "__main__":
    signed = _sign_here(Path(sys.argv[1]), sys.stdin.buffer.read())
    print(json.dumps({"key": signed.key.hex(), "signature": signed.signature.hex()}))
