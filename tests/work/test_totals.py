"""What a meter's totals are worth, and what they are shown as to whoever takes a fall for a reset."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from heliograph.core.daily import Border
from heliograph.core.health import Health, MeterHealth
from heliograph.core.ledger import Seam
from heliograph.outputs.broker import Address, Broker, Message
from heliograph.outputs.metrics import Metrics
from heliograph.outputs.mqtt import Mqtt, Policy, Topics
from heliograph.outputs.sparkplug import of_the_ledger
from heliograph.outputs.sparkplug_payload import Quality
from heliograph.store import Store
from heliograph.work.amend import record_correction, record_seam
from heliograph.work.close_days import close_days
from heliograph.work.health import Live, health
from tests.fakes import RULES, START, FakeClock
from tests.work.one_meter import METER, at, read, store

__all__ = ["store"]

MIDNIGHT = START + timedelta(days=1)
"""START is one, too."""


def close(store: Store, hours: float) -> None:
    close_days([METER], store, FakeClock(at(hours)), RULES)


def seen(store: Store, hours: float, live: Live | None = None) -> Health:
    return health("site", [METER], store, FakeClock(at(hours)), RULES, live)


def roof(store: Store, hours: float, live: Live | None = None) -> MeterHealth:
    return seen(store, hours, live).meters[0]


class Heard(Broker):
    """A connection that only takes down what it is given."""

    said: list[Message]

    def put(self, *messages: Message) -> None:
        self.said = [*getattr(self, "said", ()), *messages]


class Ear:
    def __init__(self) -> None:
        policy = Policy(timedelta(seconds=10), 1.0, timedelta(minutes=5))
        self._output = Mqtt(
            Address("x", 1, "x"), Topics("h", "site"), ["roof"], policy, FakeClock(START), connection=Heard
        )

    def told(self, health: Health, name: str) -> dict[str, Any] | None:
        """What the picture made it say of that total; None where nothing was said."""
        broker = self._output._broker
        assert isinstance(broker, Heard)
        broker.said = []
        self._output.picture(health, ())
        found = [json.loads(one.payload) for one in broker.said if one.topic == f"h/site/roof/{name}"]
        return found[-1] if found else None


def test_a_total_is_of_the_moment_of_its_reading_and_uncertain_once_that_is_old(store: Store) -> None:
    """The card is full from noon on: the meter is read on, and nothing of it is stored."""
    read(store, 0, 1_000)
    close(store, 0)
    read(store, 12, 5_000)
    live, late = Live(), 12 + METER.cadence / timedelta(hours=1)
    for hours, quality in ((12.0, "good"), (late, "good"), (late + 0.01, "uncertain"), (15.0, "uncertain")):
        live.at["roof"] = at(hours)
        one = roof(store, hours, live)
        assert (one.state, one.last_at, one.total_at, one.total_wh) == ("ok", at(hours), at(12), 4_000)
        assert (one.total_quality, one.today_quality) == (quality, quality)
    for name in ("production_total", "production_today"):
        said = Ear().told(seen(store, 15, live), name)
        assert said is not None
        assert (said["ts"], said["value"], said["quality"]) == ("2026-03-14T04:00:00.000Z", 4_000, "uncertain")
        assert of_the_ledger(one)[name] == (4_000, Quality.STALE, at(12))


def test_a_total_that_does_not_move_is_told_again_after_the_heartbeat(store: Store) -> None:
    """Or it would expire in Home Assistant while an inverter sleeps."""
    read(store, 0, 1_000)
    close(store, 0)
    ear = Ear()
    told = {minute: ear.told(seen(store, minute / 60), "production_total") for minute in range(15)}
    assert [(minute, one["quality"]) for minute, one in told.items() if one is not None] == [
        (0, "good"),
        (4, "uncertain"),
        (9, "uncertain"),
        (14, "uncertain"),
    ]


def test_a_correction_lowers_the_ledger_and_what_is_shown_waits_until_it_is_overtaken(store: Store) -> None:
    read(store, 1, 30_000)
    close(store, 1)
    read(store, 9, 36_000)
    for hours, wh in ((11, 1_000), (23.99, 2_000)):
        read(store, hours, wh, "energy_export fell")
    wrong = record_seam(METER, Seam("roof", at(10), "reset", 40_000, 0), store, at(23.995)).seam.id
    assert wrong is not None
    read(store, 24.5, 2_000)
    close(store, 25)
    closed = store.days.all()[-1].total_wh
    read(store, 30, 2_400)
    live = Live()
    before = roof(store, 30, live)
    assert (before.rising_wh, before.total_wh, before.total_quality) == (12_400, 12_400, "good")
    read(store, 30.09, 2_400)
    record_correction(METER, wrong, 36_500, 0, "the photo of the display", store, at(30.1))
    after = roof(store, 30.1, live)
    assert after.total_wh == closed == 12_000, "status is honest"
    assert (after.rising_wh, after.total_quality, after.today_quality) == (12_400, "uncertain", "good")
    said = Ear().told(seen(store, 30.1, live), "production_total")
    assert said is not None and (said["value"], said["quality"]) == (12_400, "uncertain")
    assert of_the_ledger(after)["production_total"][:2] == (12_400, Quality.STALE)
    page = Metrics("127.0.0.1", 0, FakeClock(START), "site", {"roof": "rs485"}, ())
    page.picture(seen(store, 30.1, live), ())
    assert 'heliograph_energy_watthours_total{meter="roof"} 12400.0' in page._made({})[1].decode()
    another_life = roof(store, 30.1, Live())
    assert another_life.rising_wh == closed, "it knows the closed days"
    shown = []
    for hours, wh in ((31, 3_000), (33, 6_500), (34, 9_000)):
        read(store, hours, wh)
        one = roof(store, hours, live)
        assert one.total_wh is not None and one.rising_wh is not None and one.rising_wh >= one.total_wh
        shown.append((one.rising_wh, one.total_quality))
    assert [wh for wh, _ in shown] == sorted(wh for wh, _ in shown) and shown[-1][1] == "good"


def test_what_is_shown_is_never_below_what_is_closed(store: Store) -> None:
    """The store was restored, and a platform knows of more than the last reading that is left."""
    read(store, 1, 1_000)
    first = store.readings.last("roof")
    assert first is not None and first.id is not None
    store.days.commission("roof", Border(at(2), 5_000, 100_000, "platform", first.id, None), at(2))
    one = roof(store, 2)
    assert (one.total_wh, one.rising_wh, one.total_quality) == (96_000, 100_000, "uncertain")
    assert (one.today_wh, one.today_quality) == (None, "bad"), "never less than nothing"


def test_after_midnight_the_production_of_a_sleeping_meter_is_not_that_of_yesterday(store: Store) -> None:
    read(store, 0, 1_000)
    close(store, 0)
    read(store, 19, 41_000)
    ear = Ear()
    said = ear.told(seen(store, 23.9), "production_today")
    assert said is not None and said["value"] == 40_000 and said["since"] == "2026-03-13T16:00:00.000Z"
    close(store, 24.5)
    said = ear.told(seen(store, 24.5), "production_today")
    assert said is not None and (said["value"], said["quality"]) == (None, "bad")
    assert roof(store, 24.5).total_wh == 40_000, "the total is known all the same"
    read(store, 30, 41_000)
    close(store, 30)
    said = ear.told(seen(store, 30), "production_today")
    assert said is not None and (said["value"], said["quality"]) == (0, "good")


def test_at_midnight_the_production_of_a_meter_that_was_just_read_is_0(store: Store) -> None:
    """Its moment is midnight, not that of the reading before it, which has the figure of yesterday."""
    read(store, 0, 1_000)
    close(store, 0)
    read(store, 23.99, 41_000)
    ear = Ear()
    assert ear.told(seen(store, 23.99), "production_today") is not None
    close(store, 24.5)
    one = roof(store, 24.5)
    assert (one.today_wh, one.today_at, one.today_since) == (0, MIDNIGHT, MIDNIGHT)
    said = ear.told(seen(store, 24.5), "production_today")
    assert said is not None and (said["value"], said["ts"]) == (0, said["since"]) == (0, "2026-03-14T16:00:00.000Z")
