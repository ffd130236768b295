"""Energies as text and back. Inside everything is whole Wh; decimal kWh exist only in what leaves or arrives."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation


def kwh(wh: int, decimals: int = 3) -> str:
    """`5123` becomes `5.123`: plain notation with a point, never rounded, never an exponent."""
    if decimals < 3:
        raise ValueError(f"{decimals} decimals of a kWh cannot carry whole Wh")
    whole, thousandths = divmod(abs(wh), 1000)
    return f"{'-' if wh < 0 else ''}{whole}.{thousandths:03d}{'0' * (decimals - 3)}"


def wh(kwh: object) -> int | None:
    """Whole Wh of a number or text in kWh; None where it is neither, or where it holds a part of a Wh.

    A float is not taken: by then the figure that was sent is lost. JSON is read with `parse_float=Decimal`.
    """
    return _whole(kwh, 3)


def whole(number: object) -> int | None:
    """The integer in a number or text that is already in Wh; None where there is none."""
    return _whole(number, 0)


def _whole(value: object, places: int) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        return None
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    # Nothing that Decimal would have to round, and nothing that would fill memory as an int.
    if not number.is_finite() or len(number.as_tuple().digits) > 28 or abs(number.adjusted()) > 28:
        return None
    shifted = number.scaleb(places)
    exact = shifted.to_integral_value()
    return int(exact) if exact == shifted else None
