"""SunSpec as the SunSpec Alliance's own library has it: names, places and types of points, and images of devices."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

if importlib.util.find_spec("sunspec2") is None and os.environ.get("CI") != "true":
    pytest.skip("pysunspec2 is not installed; pip install pysunspec2", allow_module_level=True)

import sunspec2.device
import sunspec2.modbus.client

NAMES: dict[str, str] = {
    "Mn": "manufacturer", "Md": "model", "Opt": "options", "Vr": "firmware_version", "SN": "serial_number",
    "DA": "modbus_address", "A": "current_sum", "Hz": "frequency", "W": "active_power", "VA": "apparent_power",
    "VAr": "reactive_power", "VAR": "reactive_power", "PF": "power_factor", "WH": "energy_production",
    "DCA": "dc_current", "DCV": "dc_voltage", "DCW": "dc_power", "TmpCab": "temperature_cabinet",
    "TmpSnk": "temperature_heatsink", "TmpTrns": "temperature_transformer", "TmpOt": "temperature_other",
    "St": "status", "StVnd": "status_vendor", "Evt1": "event_1", "Evt2": "event_2", "PhV": "voltage_ln_avg",
    "PPV": "voltage_ll_avg", "TotWhExp": "energy_export", "TotWhImp": "energy_import", "Evt": "event",
    "N": "module_count", "TmsPer": "timestamp_period",
    "PPVphAB": "voltage_l1l2", "PPVphBC": "voltage_l2l3", "PPVphCA": "voltage_l3l1",
    "PhVphAB": "voltage_l1l2", "PhVphBC": "voltage_l2l3", "PhVphCA": "voltage_l3l1",
}  # fmt: skip
"""Names of points -> our words; what is not here has no register in our templates."""
for _letter, _number in (("A", 1), ("B", 2), ("C", 3)):
    NAMES |= {
        f"Aph{_letter}": f"current_l{_number}",
        f"PhVph{_letter}": f"voltage_l{_number}n",
        f"Wph{_letter}": f"active_power_l{_number}",
        f"VAph{_letter}": f"apparent_power_l{_number}",
        f"VARph{_letter}": f"reactive_power_l{_number}",
        f"PFph{_letter}": f"power_factor_l{_number}",
        f"TotWhExpPh{_letter}": f"energy_export_l{_number}",
        f"TotWhImpPh{_letter}": f"energy_import_l{_number}",
    }
INPUT_NAMES: dict[str, str] = {
    "IDStr": "name", "DCA": "dc_current", "DCV": "dc_voltage", "DCW": "dc_power", "DCWH": "dc_energy",
    "Tms": "timestamp", "Tmp": "temperature", "DCSt": "status", "DCEvt": "event",
}  # fmt: skip
TYPES: dict[str, str] = {
    "int16": "s16", "uint16": "u16", "uint32": "u32", "acc32": "acc32", "float32": "float32", "enum16": "enum16",
    "bitfield32": "bitfield32", "sunssf": "sunssf", "string": "text", "count": "u16",
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A point of a model as the Alliance's JSON has it; `offset` counts from the model's ID."""

    name: str
    type: str
    offset: int
    size: int
    exponent: str | None
    """The name of its scale factor."""
    input: bool = False
    """Of the first group of model 160."""


def points(model: int) -> list[Point]:
    """All of a model; of the repeated group of model 160 the first."""
    group = sunspec2.device.get_model_def(model)["group"]
    found = list(_points(group["points"], 0, False))
    at = found[-1].offset + found[-1].size
    for inner in group.get("groups", []):
        found += _points(inner["points"], at, True)
    return found


def _points(rows: list[dict[str, Any]], at: int, repeated: bool) -> Iterator[Point]:
    for row in rows:
        yield Point(row["name"], row["type"], at, row["size"], row.get("sf"), repeated)
        at += row["size"]


def image(model: int, values: Mapping[str, object], inputs: Sequence[Mapping[str, object]] | None = None) -> list[int]:
    """The words of a model in which these points are set, as raw values; all others are not implemented."""
    data: dict[str, Any] = dict(values)
    if inputs is not None:
        made = sunspec2.device.Model(model, model_len=8 + 20 * len(inputs))
        made.set_dict(data | ({"module": [dict(one) for one in inputs]} if inputs else {}))
    else:
        made = sunspec2.device.Model(model)
        made.set_dict(data)
    raw: bytes = made.get_mb()
    words = [int.from_bytes(raw[at : at + 2], "big") for at in range(0, len(raw), 2)]
    words[0], words[1] = model, len(words) - 2
    return words


def client(host: str, port: int, unit: int) -> Any:
    """A client that has walked the device and read all of it."""
    found = sunspec2.modbus.client.SunSpecModbusClientDeviceTCP(slave_id=unit, ipaddr=host, ipport=port, timeout=5)
    found.scan()
    found.close()
    return found
