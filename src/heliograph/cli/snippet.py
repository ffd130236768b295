"""The text of `[[bus]]` and `[[meter]]` to paste below `[site]`: of meters that are simulated, or that a scan found.

What only a person can know stands there as 0 or "" with an arrow behind it: `heliograph check` refuses both, so a
place that was forgotten cannot become a wrong figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from heliograph.core.registers import MeterMap, Order

FILL_IN = "<-- fill in"


def bus_text(id: str, url: str, about: str) -> str:
    """`about`: the comment above it."""
    return f'# {about}\n[[bus]]\nid    = "{id}"\nurl   = "{url}"\nevery = "10s"\n'


def meter_text(
    id: str,
    bus: str,
    unit: int,
    map: MeterMap | None,
    *,
    rated_kw: float | None = None,
    its_own_kw: bool = False,
    production: str | None = None,
    serial: str = "",
    any_serial: bool = False,
    factors: Mapping[str, float | None] | None = None,
    order: Order | None = None,
    choose: str = "",
    remarks: Sequence[str] = (),
) -> str:
    """One meter. None stands for what has to be filled in; `choose`: the maps it may be, where none is certain.

    `its_own_kw`: the device itself told its power. `any_serial`: the serial number is a comment, and other meters are
    not refused.
    """
    production = production or (map.production if map else None)
    lines = [*(f"# {remark}" for remark in remarks), "[[meter]]"]
    lines += [f'id         = "{id}"', f'bus        = "{bus}"', f"unit       = {unit}"]
    lines.append(f'map        = "{map.name}"' if map else f'map        = ""   # {FILL_IN}: {choose}')
    power = f"{rated_kw:g}" if rated_kw is not None else f"0   # {FILL_IN}: nameplate power in kW of what it counts"
    told = "   # as the device says; is it the nameplate's?" if its_own_kw and rated_kw is not None else ""
    lines.append(f"rated_kw   = {power}{told}")
    if production:
        lines.append(f'production = "{production}"')
    elif map:
        lines.append(f'production = ""   # {FILL_IN}: the counter that is production; heliograph map show {map.name}')
    if serial:
        lines.append(f'# serial   = "{serial}"' if any_serial else f'serial     = "{serial}"')
    if order:
        lines.append(f'order      = "{order}"')
    if map and map.status == "unverified":
        lines.append("# accept_unverified_map = true   # nothing is delivered without it")
    if factors:
        told = ", ".join(f"{key} = {value or 0:g}" for key, value in factors.items())
        missing = [key for key, value in factors.items() if value is None]
        arrow = f"   # {FILL_IN}: as set in the meter" if missing else ""
        lines.append(f"factors    = {{ {told} }}{arrow}")
    return "\n".join(lines) + "\n"
