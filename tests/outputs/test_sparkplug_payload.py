"""Our bytes against those written with Eclipse Tahu's module, and what strangers may send."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from sparkplub_b_packets.core import sparkplug_b_pb2 as tahu

from heliograph.outputs import sparkplug_b_pb2
from heliograph.outputs.sparkplug_payload import MOST_BYTES, Metric, Type, Value, Wish, payload, wishes
from tests.outputs.sparkplug_checker import FIELDS, decoded

SEED = int(os.environ.get("HELIOGRAPH_SEED", time.time_ns() % 1_000_000))
ROUNDS = 400
SOURCES = Path(__file__).parents[2] / "src"


def some_value(rng: random.Random, type: Type) -> Value:
    """The edges more often than not."""
    if rng.random() < 0.1:
        return None
    match type:
        case Type.INT32 | Type.INT64:
            bits = 31 if type is Type.INT32 else 63
            return rng.choice(
                [0, 1, -1, 127, 128, (1 << bits) - 1, -(1 << bits), rng.randrange(-(1 << bits), 1 << bits)]
            )
        case Type.DOUBLE:
            return rng.choice([0.0, -0.0, 1e308, -5e-324, rng.uniform(-1e6, 1e6)])
        case Type.BOOLEAN:
            return rng.random() < 0.5
        case Type.STRING:
            return some_text(rng)


def some_text(rng: random.Random) -> str:
    return "".join(rng.choice("aB/_é太\U0001f31e") for _ in range(rng.choice([0, 1, 5, 200])))


def some_metric(rng: random.Random) -> Metric:
    type = rng.choice(list(Type))
    properties = {
        some_text(rng): (other := rng.choice(list(Type)), some_value(rng, other)) for _ in range(rng.randrange(3))
    }
    return Metric(
        type,
        some_value(rng, type),
        rng.choice([0, 1, rng.randrange(1 << 63)]),
        some_text(rng),
        rng.choice([None, 0, 1, 127, 128, rng.randrange(1 << 40)]),
        rng.random() < 0.5,
        rng.random() < 0.5,
        properties,
    )


def some_payloads() -> Iterator[tuple[list[Metric], int, int | None]]:
    print(f"HELIOGRAPH_SEED={SEED}")
    rng = random.Random(SEED)
    for _ in range(ROUNDS):
        metrics = [some_metric(rng) for _ in range(rng.randrange(5))]
        yield metrics, rng.randrange(1 << 63), rng.choice([None, 0, 255, rng.randrange(256)])


def put(target: Any, type: Type, value: Value) -> None:
    if value is None:
        target.is_null = True
        return
    if type in (Type.INT32, Type.INT64):
        assert isinstance(value, int)
        value %= 1 << (32 if type is Type.INT32 else 64)
    setattr(target, FIELDS[type], value)


def theirs(metrics: list[Metric], at: int, seq: int | None) -> bytes:
    found: Any = decoded(b"")
    found.timestamp = at
    for one in metrics:
        metric = found.metrics.add()
        if one.name:
            metric.name = one.name
        if one.alias is not None:
            metric.alias = one.alias
        metric.timestamp = one.at
        if one.typed:
            metric.datatype = one.type
        if one.historical:
            metric.is_historical = True
        for name, (type, value) in one.properties.items():
            metric.properties.keys.append(name)
            inner = metric.properties.values.add()
            inner.type = type
            put(inner, type, value)
        put(metric, one.type, one.value)
    if seq is not None:
        found.seq = seq
    written: bytes = found.SerializeToString()
    return written


def test_every_byte_is_the_one_that_tahu_writes() -> None:
    for metrics, at, seq in some_payloads():
        assert payload(metrics, at, seq) == theirs(metrics, at, seq)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_no_value(value: float) -> None:
    assert payload([Metric(Type.DOUBLE, value, 1)], 1) == theirs([Metric(Type.DOUBLE, None, 1)], 1, None)


def test_a_command_is_understood_as_tahu_wrote_it() -> None:
    for metrics, at, seq in some_payloads():
        wanted = [Wish(one.name, one.value if isinstance(one.value, bool) else None) for one in metrics]
        assert list(wishes(theirs(metrics, at, seq))) == wanted


def test_a_command_with_broken_bytes_is_refused_or_read_and_nothing_else() -> None:
    rng = random.Random(SEED)
    for metrics, at, seq in some_payloads():
        data = bytearray(theirs(metrics, at, seq))
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        with suppress(ValueError):
            wishes(bytes(data[: rng.randrange(len(data) + 1)]))


@pytest.mark.parametrize(
    "data",
    [b"\x12\x05ab", b"\x08", b"\x08" + b"\xff" * 11, b"\x0b"],
    ids=["ends in a field", "ends in a number", "long number", "open group"],
)
def test_broken_bytes_are_no_command(data: bytes) -> None:
    with pytest.raises(ValueError, match="no payload of Sparkplug B"):
        wishes(data)


def test_a_command_of_any_length_is_not_even_read() -> None:
    with pytest.raises(ValueError, match=f"{MOST_BYTES + 1} bytes"):
        wishes(b"\0" * (MOST_BYTES + 1))


def fields(message: Any) -> Iterator[tuple[str, str, int, int, int]]:
    """Of a message and those within it: where, name, number, type, label."""
    for one in message.field:
        yield message.name, one.name, one.number, one.type, one.label
    for inner in message.nested_type:
        yield from fields(inner)


def test_the_schema_is_that_of_eclipse_tahu() -> None:
    """All its fields with their numbers and types, but for what it reserves for extensions."""
    ours, other = FileDescriptorProto(), FileDescriptorProto()
    sparkplug_b_pb2.DESCRIPTOR.CopyToProto(ours)
    tahu.DESCRIPTOR.CopyToProto(other)
    wanted = {one for one in fields(other.message_type[0]) if one[1] != "extension_value"}
    assert set(fields(ours.message_type[0])) == wanted and len(wanted) > 60


def test_the_module_is_made_from_the_schema(tmp_path: Path) -> None:
    if shutil.which("protoc") is None:
        assert "CI" not in os.environ, "install protobuf-compiler"
        pytest.skip("protoc is not installed (Debian: protobuf-compiler)")
    name, made = "heliograph/outputs/sparkplug_b.proto", tmp_path / "made"
    subprocess.run(["protoc", f"--descriptor_set_out={made}", name], cwd=SOURCES, check=True)
    (wanted,) = FileDescriptorSet.FromString(made.read_bytes()).file
    found = FileDescriptorProto()
    sparkplug_b_pb2.DESCRIPTOR.CopyToProto(found)
    assert list(fields(found.message_type[0])) == list(fields(wanted.message_type[0]))


def test_the_comparison_sees_a_wrong_field() -> None:
    """The control: a float in place of a double, which a lenient reader would take for nothing."""
    ours = payload([Metric(Type.DOUBLE, 1.5, 1)], 1)
    assert ours.replace(b"\x69" + struct.pack("<d", 1.5), b"\x65" + struct.pack("<f", 1.5)) != theirs(
        [Metric(Type.DOUBLE, 1.5, 1)], 1, None
    )
