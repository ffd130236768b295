"""What REDEX' answers mean, whatever was asked: envelope, status codes, rate limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from heliograph.core.delivery import DayRow, State, Verdict
from heliograph.uplink.http import Answer, portal
from heliograph.uplink.tokens import TOKEN_WAIT


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a status says about everything a request carried."""

    state: State
    remedy: str
    wait: timedelta | None = None
    pause_all: bool = False


# None of these says anything about a day: the account, the address or the quota is at fault, so the days stay due and
# nothing more leaves. A changed file, setting or account is found at the next try; nothing has to be released.
LATER = timedelta(hours=1)
MEANINGS: dict[int, Meaning] = {
    401: Meaning("due", "Check the token, or api_key, client_id and client_secret.", TOKEN_WAIT, True),
    403: Meaning("due", "The account may not send these; ask the platform for its state and rights.", LATER, True),
    404: Meaning("due", "Check base_url, dialect and paths; other paths are not guessed.", LATER, True),
    405: Meaning("due", "Check dialect and paths; other paths are not guessed.", LATER, True),
}
READ_BACK = "The days are read back before anything is sent again."


def envelope(answer: Answer) -> Mapping[str, Any] | None:
    """The envelope of §1.1 that says itself that all went well. Errors may be null, empty or absent (§9 rule 20)."""
    found = answer.json
    if not answer.success or not isinstance(found, dict):
        return None
    status = found.get("StatusCode")
    if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status < 300 or found.get("Errors"):
        return None
    return found


def process_id(data: Any) -> str | None:
    """`Data.ProcessId`, then `Data.Id`, then a bare integer (§9 rule 17)."""
    for value in (data.get("ProcessId"), data.get("Id")) if isinstance(data, dict) else (data,):
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value.isdecimal():
            return value
    return None


def trouble(answer: Answer, now: datetime) -> Verdict:
    """What an answer that is not the wanted one means, whatever was asked."""
    if answer.status == 429:
        return rate_limit(answer, now)
    if answer.status in MEANINGS:
        meaning = MEANINGS[answer.status]
        rule = f"R{answer.status}"
        words, token = answer.words(), answer.status == 401
        pause = meaning.pause_all
        return Verdict(meaning.state, rule, words, meaning.remedy, meaning.wait, pause_all=pause, token=token)
    if (verdict := portal(answer)) is not None:
        return verdict
    rule = "shape" if answer.success else f"R{answer.status}"
    return Verdict("unclear", rule, answer.words(), READ_BACK, answer.retry_after(now))


def rate_limit(answer: Answer, now: datetime) -> Verdict:
    """Retry-After; other gateways of the account wait as well, so chance comes on top of it in the pause (§8)."""
    remedy = "The account's quota of requests is used up, perhaps by other gateways; it is tried again by itself."
    asked = answer.retry_after(now)
    return Verdict("due", "R429", answer.words(), remedy, asked, pause_all=True, busy=True)


def same(rows: Sequence[DayRow], verdict: Verdict) -> dict[int, Verdict]:
    return {row.id: verdict for row in rows}


def still(row: DayRow) -> State:
    """The state of a row about which nothing more could be learnt."""
    return "accepted" if row.state == "accepted" else "unclear"
