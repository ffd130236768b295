"""What a host has not got: spans of time by meter, from which replaying takes its next piece. Pure.

A message without acknowledgement that was written into a dead connection looks like one that arrived. So whatever was
said shortly before a loss counts as missing again, live values and pieces of a replay alike: some come twice, with the
same moment, and none is left out.

What happens to the link is timed in seconds since boot, which never step; dates are made of them where a span begins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

MOST_SPANS = 32
"""Of a meter. A link that comes and goes more often has its oldest ones joined: values between come twice."""
MOST_SENT = 1000
"""Pieces that are remembered after they were sent."""
STEP = timedelta(microseconds=1)
UNKNOWN = datetime(1970, 1, 1, tzinfo=UTC)
"""Where nobody knows since when something is missing: as far back as anything is replayed."""


@dataclass(frozen=True, slots=True)
class Span:
    """Both ends belong to it."""

    since: datetime
    until: datetime


class Missing:
    """`keep` is how far back anything is replayed. Not for two threads at once."""

    def __init__(self, meters: Iterable[str], keep: timedelta, since: datetime | None = None) -> None:
        """`since`: from when on something is missing that an earlier life of ours did not tell."""
        self._spans: dict[str, list[Span]] = {meter: [] for meter in meters}
        self._keep = keep
        self._earlier = since
        self._from: float | None = None
        """While nobody listens, or nobody knows the date: since when."""
        self._sent: deque[tuple[float, str, Span]] = deque(maxlen=MOST_SENT)

    def lost(self, since: float) -> None:
        """Nobody listens, and nobody knows what arrived of that which was said from `since` on."""
        self._from = since if self._from is None else min(self._from, since)
        for at, meter, span in self._sent:
            if at >= since:
                self._add(meter, span)
        self._sent.clear()

    @property
    def undated(self) -> bool:
        """Something is missing of which `heard_again` has to say from when on and until when."""
        return self._from is not None or self._earlier is not None

    def heard_again(self, now: datetime, up: float) -> None:
        """From now on the host is told what is measured. Both are this moment; only on a clock that is trusted."""
        begins = [now - timedelta(seconds=up - self._from)] if self._from is not None else []
        begins += [self._earlier if self._earlier <= now else UNKNOWN] if self._earlier is not None else []
        if begins:
            self._from = self._earlier = None
            for meter in self._spans:
                if self._keep:
                    self._add(meter, Span(max(min(begins), now - self._keep), now))

    def set_right(self, now: datetime) -> None:
        """No span reaches into the future: where one does, its dates are of a clock that was ahead."""
        for meter, spans in self._spans.items():
            if any(span.until > now for span in spans):
                self._spans[meter] = [span for span in spans if span.until <= now]
                begins = [span.since if span.since <= now else now - self._keep for span in spans if span.until > now]
                self._add(meter, Span(min(begins), now))

    def next(self, meters: Collection[str]) -> tuple[str, Span] | None:
        """The oldest span of these meters."""
        found = [(spans[0].since, meter) for meter, spans in self._spans.items() if spans and meter in meters]
        return (oldest := min(found)[1], self._spans[oldest][0]) if found else None

    def sent(self, meter: str, upto: datetime, up: float) -> None:
        """The meter's first span was replayed up to this moment."""
        span = self._spans[meter].pop(0)
        self._sent.append((up, meter, replace(span, until=min(upto, span.until))))
        if upto < span.until:
            self._spans[meter].insert(0, Span(upto + STEP, span.until))

    def oldest(self, now: datetime | None, up: float) -> datetime | None:
        """From when on something may be missing, None when all is told. No `now`: on a clock that is not trusted."""
        begins = [spans[0].since for spans in self._spans.values() if spans]
        if self._earlier is not None:
            begins.append(self._earlier)
        if self._from is not None and now is not None:
            begins.append(now - timedelta(seconds=up - self._from))
        return min(begins, default=None if self._from is None else UNKNOWN)

    def _add(self, meter: str, span: Span) -> None:
        joined: list[Span] = []
        for one in sorted([*self._spans[meter], span], key=lambda one: one.since):
            if joined and one.since <= joined[-1].until + STEP:
                joined[-1] = Span(joined[-1].since, max(joined[-1].until, one.until))
            else:
                joined.append(one)
        if len(joined) > MOST_SPANS:
            joined[:2] = [Span(joined[0].since, joined[1].until)]
        self._spans[meter] = joined
