"""Structured logs on stderr: readable on a terminal, one JSON object a line otherwise."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable
from typing import Any

# structlog takes rich along if it finds it: 12 MB that a small box has better uses for, since no table is logged.
_rich = sys.modules.get("rich")
sys.modules["rich"] = None  # type: ignore[assignment]  # Python's own way to say: not to be imported
structlog = importlib.import_module("structlog")
if _rich is None:
    del sys.modules["rich"]
else:
    sys.modules["rich"] = _rich


_masks: list[Callable[[str], str]] = []


def hide(mask: Callable[[str], str]) -> None:
    """From now on every text passes `mask`, which takes secrets out of it: nobody knows what an exception quotes."""
    _masks.append(mask)


def masked(text: str) -> str:
    for mask in _masks:
        text = mask(text)
    return text


def set_up(level: str = "info") -> None:
    number = logging.getLevelNamesMapping()[level.upper()]
    # Libraries log through the standard module; only what needs attention is let through.
    logging.basicConfig(level=max(number, logging.WARNING), stream=sys.stderr, format="%(name)s: %(message)s")
    logging.getLogger().setLevel(max(number, logging.WARNING))  # also where it was set up before
    for handler in logging.getLogger().handlers:
        handler.addFilter(_quiet)
    # A round that takes longer than its period is told by the ages of the readings, not by every skipped start.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    terminal = sys.stderr.isatty()
    renderer = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()

    def last(logger: Any, name: str, event: Any) -> str:
        """Masked before and after: a secret may be written in another way once it stands in JSON."""
        event = {key: masked(value) if isinstance(value, str) else value for key, value in event.items()}
        return masked(str(renderer(logger, name, event)))

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if not terminal else _as_it_is,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _quiet(record: logging.LogRecord) -> bool:
    """What libraries say passes the same masks, tracebacks included."""
    if record.exc_info and not record.exc_text:
        record.exc_text = logging.Formatter().formatException(record.exc_info)
    record.exc_text = masked(record.exc_text) if record.exc_text else record.exc_text
    record.msg, record.args = masked(record.getMessage()), ()
    return True


def _as_it_is(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
    return event
