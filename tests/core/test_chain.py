"""The encoding is for ever: these bytes must never change."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta, timezone

import pytest

from heliograph.core.chain import GENESIS, Checkpoint, canonical, digest, fingerprint, link, told


def test_the_canonical_form_is_fixed() -> None:
    value = {"b": [1, -2, True, None], "a": 'ü"\n€', "c": {"z": 0, "y": ""}}
    assert canonical(value) == '{"a":"ü\\"\\n€","b":[1,-2,true,null],"c":{"y":"","z":0}}'.encode()


@pytest.mark.parametrize("value", [1.5, {"a": 0.1}, [float("nan")], {1: 2}, {"a": datetime(2026, 1, 1, tzinfo=UTC)}])
def test_what_has_more_than_one_form_has_none(value: object) -> None:
    with pytest.raises(TypeError):
        canonical(value)


def test_links_are_plain_sha256() -> None:
    body = canonical({"kind": "day", "seq": 1})
    first = link(GENESIS, digest(body))
    assert first.hex() == hashlib.sha256(bytes(32) + hashlib.sha256(b'{"kind":"day","seq":1}').digest()).hexdigest()
    assert link(first, digest(body)) != first


def test_moments_are_utc() -> None:
    assert told(datetime(2026, 3, 14, 8, 30, tzinfo=timezone(timedelta(hours=8)))) == "2026-03-14T00:30:00Z"


def test_a_checkpoint_signs_these_bytes() -> None:
    one = Checkpoint(7, bytes(32), datetime(2026, 3, 14, tzinfo=UTC), "sg-0042", b"key")
    told = '{"at":"2026-03-14T00:00:00Z","hash":"' + "0" * 64 + '","seq":7,"site":"sg-0042"}'
    assert one.message == b"heliograph checkpoint\n" + told.encode()


def test_a_fingerprint_can_be_read_out() -> None:
    assert fingerprint(bytes(32)) == "6668-7aad-f862-bd77-6c8f-c18b-8e9f-8e20"
