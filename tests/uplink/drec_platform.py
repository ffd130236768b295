"""Rows, a scripted D-REC and an uplink to it, for the tests of the uplink."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx

from heliograph.core.delivery import FOLLOWS, DayRow, Parcel, Verdict
from heliograph.uplink.drec import Drec
from heliograph.uplink.drec_packing import ReadType
from heliograph.uplink.http import Http
from heliograph.uplink.tokens import Secret, StaticToken

NOW = datetime(2026, 5, 10, tzinfo=UTC)
FIRST = date(2026, 5, 1)
HOUR = timedelta(hours=1)
Handler = Callable[[httpx.Request], httpx.Response]


def row(id: int = 1, day: int = 0, period: int = 41250, meter: str = "roof", **more: Any) -> DayRow:
    """A day in Singapore: it ends at 16:00 UTC. Every row gets a total that follows from its own period."""
    at = datetime(2026, 4, 30, 16, tzinfo=UTC) + timedelta(days=day)
    total = more.pop("total", 1000 + period)
    end = more.pop("end", at + timedelta(days=1))
    return DayRow(id, meter, f"SG-{meter}", FIRST + timedelta(days=day), at, end, period, total, **more)


class Server:
    """Answers POSTs from a list and GETs from the reads it holds, a page of five at a time."""

    def __init__(
        self,
        *answers: httpx.Response | Exception,
        held: dict[str, Any] | None = None,
        before: dict[str, Any] | None = None,
        size: int = 5,
    ) -> None:
        """`held` are Delta or Aggregate reads, `before` History, by end."""
        self.answers, self.held, self.before, self.size = list(answers), dict(held or {}), dict(before or {}), size
        self.posts: list[tuple[str, Any]] = []
        self.gets: list[dict[str, str]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer tok-CANARY"
        if request.method == "POST":
            self.posts.append((request.url.raw_path.decode(), json.loads(request.content)))
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        if request.url.path.endswith("/device/my"):
            return reply(200, [])
        query = dict(request.url.params)
        self.gets.append(query)
        return reply(200, self.page(query["start"], query["end"], int(query["pagenumber"])))

    def page(self, start: str, end: str, number: int) -> Any:
        inside = [(at, value) for at, value in sorted(self.held.items()) if when(start) <= when(at) <= when(end)]
        pages = -(-len(inside) // self.size)
        reads = [
            {"startdate": start, "enddate": at, "value": value}
            for at, value in inside[(number - 1) * self.size : number * self.size]
        ]
        return {
            "historyread": [
                {"startdate": start, "enddate": at, "value": value}
                for at, value in self.before.items()
                if when(start) <= when(at) <= when(end)
            ],
            "ongoing": reads,
            "numberOfReads": len(inside),
            "numberOfPages": pages,
            "currentPageNumber": number if reads else 1,
            "timezone": "Asia/Singapore",
        }


def when(text: str) -> datetime:
    return datetime.fromisoformat(text)


def reply(status: int, body: Any = b"", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.Response(
        status, content=content, headers={key.replace("_", "-"): text for key, text in headers.items()}
    )


def refusal(status: int, message: Any, **more: Any) -> httpx.Response:
    return reply(status, {"success": False, "message": message, **more})


def uplink(server: Handler | None = None, kind: ReadType = "Delta", **more: Any) -> Drec:
    def nothing(request: httpx.Request) -> httpx.Response:
        raise AssertionError(f"nothing should have been sent: {request.url}")

    http = Http("https://platform.example/api", timeout=30, transport=httpx.MockTransport(server or nothing))
    tokens = StaticToken(Secret(env="T", environ={"T": "tok-CANARY"}))
    more.setdefault("now", lambda: NOW)
    return Drec("drec", http, kind, tokens, jitter=lambda: 0.5, sleep=lambda _: None, **more)


def packed(given: Sequence[DayRow], kind: ReadType = "Delta", **more: Any) -> tuple[list[int], Any] | None:
    parcel = uplink(kind=kind, **more).pack(given)
    return None if parcel is None else ([row.id for row in parcel.rows], json.loads(parcel.body)["reads"][0])


def judged(
    answer: httpx.Response | Exception,
    given: Sequence[DayRow] = (row(),),
    kind: ReadType = "Delta",
    held: dict[str, Any] | None = None,
    **more: Any,
) -> Verdict:
    drec = uplink(Server(answer, answer, held=held), kind, **more)
    verdicts = drec.send(parcel_of(drec, given))
    assert set(verdicts) == {row.id for row in given}
    (verdict,) = set(verdicts.values())
    assert verdict.state in FOLLOWS["unclear"] | {"unclear"}
    assert "CANARY" not in verdict.text
    return verdict


def parcel_of(drec: Drec, given: Sequence[DayRow]) -> Parcel:
    parcel = drec.pack(given)
    assert parcel is not None
    assert parcel.rows == tuple(given)
    return parcel


def ends(day: int) -> str:
    return (datetime(2026, 5, 1, 16, tzinfo=UTC) + timedelta(days=day)).strftime("%Y-%m-%dT%H:%M:%S.000Z")


EQUAL_END = refusal(409, "Failed, MaxEnergy: 0")
