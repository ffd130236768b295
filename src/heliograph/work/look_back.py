"""What was stored of a meter, for an output whose peer was away when it was measured."""

from __future__ import annotations

from datetime import datetime

from heliograph.core.ledger import continuous
from heliograph.core.shown import PastSample
from heliograph.core.site import Meter
from heliograph.store import Store


def look_back(meter: Meter, store: Store, since: datetime, until: datetime, most: int) -> list[PastSample]:
    """Samples of that time, oldest first, at most so many; with the running total that each one's counter comes to."""
    border = store.days.last_border(meter.id)
    seams = store.seams.all(meter.id) if border is not None else []
    found = []
    for reading in store.readings.onward(meter.id, since, until, most):
        at, index, values = reading.moment.at, reading.index_wh, dict(reading.values)
        total = None
        if reading.good and index is not None:
            values[meter.production] = index
            if border is not None:
                total = border.total_wh + continuous(seams, at, index) - border.index_wh
        found.append(PastSample(at, values, total))
    return found
