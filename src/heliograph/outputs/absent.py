"""In place of an output whose package is not installed: metering must not wait for it."""

from __future__ import annotations

from collections.abc import Sequence

from heliograph.core.health import Health, OutputHealth
from heliograph.core.shown import DayFigure, Sample


class Absent:
    """An output (ports.Output)."""

    def __init__(self, name: str, package: str | None) -> None:
        self.name = name
        self._trouble = (
            f"the Python package {package} is not installed. Install it beside Heliograph (pip install"
            f" 'heliograph[{name}]'), then restart"
        )

    def start(self) -> None: ...

    def sample(self, sample: Sample) -> None: ...

    def picture(self, health: Health, days: Sequence[DayFigure]) -> None: ...

    def state(self) -> OutputHealth:
        return OutputHealth(self.name, f"[{self.name}]", False, None, self._trouble)

    def close(self) -> None: ...
