"""What was tried with the rows of the outbox, and what came of it: one record for all rows of an answer.

A batch of 3,000 days is one record that names its rows in a few characters, and an answer that says the same again
(waiting, not there yet, refused for now) only raises a count and its last moment: a card has to take it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from heliograph.core.delivery import State
from heliograph.store.connection import Connection, micros, moment

Asked = Literal["send", "follow", "read-back", "device", "person"]
"""What was asked: to take days, what became of a process, what is held there, what is known of the device; or a person
decided."""

# What settles nothing may come back in turns for as long as an outage lasts, so it is counted wherever it came before.
OPEN: frozenset[State] = frozenset({"due", "unclear"})
# A person's reason is a line or two.
LONGEST = 500


class Attempts:
    def __init__(self, connection: Connection) -> None:
        self._db = connection

    def record(
        self,
        rows: Collection[int],
        at: datetime,
        asked: Asked,
        uplink: str,
        claim: int | None,
        result: tuple[State, str, str, str],
    ) -> None:
        """Inside the transaction that moves the rows. `result`: state, rule, words, remedy."""
        state, rule, answer, remedy = result
        first, named = min(rows), named_rows(rows)
        with self._db.writing():
            before = self._db.all(
                "SELECT id, asked, state, rule FROM attempt WHERE first = ? AND rows = ? ORDER BY id DESC",
                [first, named],
            )
            for one in before if state in OPEN else before[:1]:
                if asked != "person" and (one["asked"], one["state"], one["rule"]) == (asked, state, rule):
                    self._db.execute(
                        "UPDATE attempt SET times = times + 1, last = ?, claim = ?, answer = ?, remedy = ?"
                        " WHERE id = ?",
                        (micros(at), claim, answer[:LONGEST], remedy[:LONGEST], one["id"]),
                    )
                    return
            self._db.execute(
                "INSERT INTO attempt (uplink, first, rows, asked, claim, at, last, times, state, rule, answer, remedy)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?)",
                (
                    uplink,
                    first,
                    named,
                    asked,
                    claim,
                    micros(at),
                    micros(at),
                    state,
                    rule,
                    answer[:LONGEST],
                    remedy[:LONGEST],
                ),
            )

    def of(self, rows: Iterable[int]) -> dict[int, list[dict[str, Any]]]:
        """What was tried with each of these rows, oldest first; rows of which nothing is recorded are left out."""
        wanted = frozenset(rows)
        found: dict[int, list[dict[str, Any]]] = {}
        if not wanted:
            return found
        records = self._db.all(
            "SELECT attempt.*, claim.at AS claimed_at FROM attempt LEFT JOIN claim ON claim.id = attempt.claim"
            " WHERE first <= ? ORDER BY attempt.last, attempt.id",
            [max(wanted)],
        )
        for record in records:
            told = _told(record)
            for row in rows_named(record["rows"]):
                if row in wanted:
                    found.setdefault(row, []).append(told)
        return {row: list(_unanswered(tried)) for row, tried in found.items()}


def _told(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "asked": record["asked"],
        "at": moment(record["at"]),
        "last": moment(record["last"]),
        "times": record["times"],
        "state": record["state"],
        "rule": record["rule"],
        "answer": record["answer"],
        "remedy": record["remedy"],
        "claim": record["claim"],
        "claimed_at": moment(record["claimed_at"]) if record["claimed_at"] is not None else None,
    }


def _unanswered(tried: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """With the requests of which no answer was written down, for the gateway ended first; they were asked about."""
    sent = {one["claim"] for one in tried if one["asked"] == "send"}
    for one in tried:
        if one["asked"] in ("follow", "read-back") and one["claim"] is not None and one["claim"] not in sent:
            sent.add(one["claim"])
            at, words = one["claimed_at"], "no answer was written down"
            nothing = {"times": 1, "state": "unclear", "rule": "", "answer": words, "remedy": ""}
            yield {**one, **nothing, "asked": "send", "at": at, "last": at}
        yield one


def named_rows(rows: Iterable[int]) -> str:
    """Row numbers in a few characters: "7", "7-3006", and "7-13/2" for every second one (two platforms)."""
    return ",".join(_run(run) for run in _runs(sorted(set(rows))))


def _runs(rows: Sequence[int]) -> Iterator[list[int]]:
    """Stretches with one distance between neighbours."""
    run: list[int] = []
    for row in rows:
        if len(run) > 1 and row - run[-1] != run[1] - run[0]:
            # A single step of its own kind is not a stretch: its second end may begin the next one.
            keep = run[1:] if len(run) == 2 else []
            yield run[:1] if keep else run
            run = keep
        run.append(row)
    if run:
        yield run


def _run(run: Sequence[int]) -> str:
    if len(run) < 3:
        return ",".join(map(str, run))
    step = run[1] - run[0]
    return f"{run[0]}-{run[-1]}" + (f"/{step}" if step > 1 else "")


def rows_named(text: str) -> Iterator[int]:
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        yield from range(int(first), int(last or first) + 1, int(step or 1))
