"""What `commission` found as one page to print and sign: no script, nothing fetched, every word escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any


def page(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(one['about'])}</td><td>{escape(one['step'])}</td><td>{escape(one['result'])}</td>"
        f"<td>{escape(one['says'])} {escape(one['todo'])}</td></tr>"
        for one in facts["checks"]
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f"<title>Commissioning of {escape(facts['site'])}</title></head><body><table>{rows}</table></body></html>\n"
    )
