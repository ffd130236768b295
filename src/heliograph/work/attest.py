"""Signs the chain's head once a day: what stands before a checkpoint cannot be changed without the device's key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import structlog

from heliograph.core.chain import Checkpoint, fingerprint
from heliograph.ports import Clock
from heliograph.store import Store

log = structlog.get_logger()

EVERY = timedelta(days=1)

Sign = Callable[[bytes], tuple[bytes, bytes]]
"""From a message to the device's public key and its signature."""


def attest(site: str, store: Store, clock: Clock, sign: Sign) -> Checkpoint | None:
    """A new checkpoint, where the last one is a day old and something was added since. None on an untrusted clock."""
    if not clock.trusted():
        return None
    now, head, last = clock.now(), store.chain.head(), store.chain.last_checkpoint()
    if head.seq == 0 or (last is not None and (head.seq == last.seq or now - last.at < EVERY)):
        return None
    draft = Checkpoint(head.seq, head.hash, now, site, b"")
    key, signature = sign(draft.message)
    signed = replace(draft, key=key, signature=signature)
    store.chain.seal(signed)
    if last is not None and last.key != key:
        store.journal.event(now, "key", "device", f"the key changed from {fingerprint(last.key)} to {fingerprint(key)}")
        log.warning("device_key_changed", before=fingerprint(last.key), now=fingerprint(key))
    log.info("checkpoint", seq=head.seq, hash=head.hash.hex(), key=fingerprint(key))
    return signed
