"""Every refusal of the D-REC platform: how it is recognised, and what is to be done (the sheet's sections 6, 12, 13).

The order is that of the sheet's list of message rules, first match wins. Texts are compared in pieces and normalised,
for they drift between the three generations of the server; codes of the newest one only count where no text fitted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from heliograph.core.delivery import Verdict
from heliograph.uplink.http import Answer, Exchange, NotSent, fault

Action = Literal["RETRY", "RETRY-RB", "AUTH", "FIX", "MERGE", "DONE?", "QUAR", "HOLD", "THRICE"]
"""The client actions of §6; THRICE is step 8 of §13 for a refusal nobody knows: three attempts over a day."""

FIX = "Our request was called malformed; report this with the text. The day keeps its value."
ACCOUNT = "Nothing is sent until the account is in order; it is tried again every hour by itself."
LOOK = "The days are read back before anything is sent again."
ONBOARDING = (
    "The day ends before the device was registered, so it cannot go in the ordinary way. If that energy is to be "
    "certified: heliograph backlog retry METER DAYS --as-history"
)
COMMISSIONING = "Energy before commissioning is not eligible; check the commissioning date at the platform."
# A day keeps the name under which it was queued until a person says that it was the wrong one.
RENAME = "If the name is wrong: correct report_as, restart, and then: heliograph backlog retry METER DAYS"
REGISTER = f"Register the device at the platform; it is tried again every hour. {RENAME}"
BASE_URL = "Check base_url: it ends in /api. It is tried again every hour."
CEILING = (
    "The server's energy ceiling is too low: check capacity and yieldValue of the device, and the meter's scaling."
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of §6: how to recognise an answer, and what to do about it."""

    id: str
    action: Action
    status: tuple[int, ...] = ()
    """Empty: any."""
    contains: tuple[str, ...] = ()
    """One of these in the normalised message; empty: whatever it says."""
    pattern: str = ""
    """Instead of `contains`: the whole message."""
    types: tuple[str, ...] = ()
    """Read types it belongs to; empty: all."""
    member: str = ""
    """The body must have this key."""
    account: bool = False
    """HOLD: it is not about the device but about the account, so nothing more leaves at all."""
    remedy: str = ""


MAX_ENERGY = r"failed, maxenergy: [0-9.e+-]+"

# In this order, the first that fits (§13 and x-message-rules). Texts are lower case, blanks collapsed, no apostrophes.
RULES: tuple[Rule, ...] = (
    Rule("T1", "RETRY-RB", (502, 503, 504), remedy=LOOK),
    Rule("T2", "RETRY", (429,), remedy="The platform asks for a pause; it is tried again by itself."),
    Rule(
        "T4",
        "AUTH",
        (401,),
        ("token revoked",),
        remedy="The platform does not keep this login: an e-mail address longer than 45 characters, or another login.",
    ),
    Rule(
        "T5",
        "HOLD",
        (401, 403),
        ("please verify", "please accept", "pending approval", "suspended"),
        account=True,
        remedy=f"Log in at the platform and do what it asks. {ACCOUNT}",
    ),
    Rule("D4", "HOLD", (401,), member="success", account=True, remedy=f"The organisation is no developer's. {ACCOUNT}"),
    Rule("T3", "AUTH", (401,), ("unauthorized",), remedy="Check the token, or user name and password."),
    Rule(
        "T6", "HOLD", (403,), ("forbidden resource",), account=True, remedy=f"Ask for READS Read and Write. {ACCOUNT}"
    ),
    Rule("T7", "HOLD", (412,), ("only active users",), account=True, remedy=f"The user is not active. {ACCOUNT}"),
    Rule("T2", "FIX", (413,), ("request entity too large",), remedy=FIX),
    Rule("D1", "HOLD", (404,), ("no organization found with id",), account=True, remedy="Check organization_id."),
    Rule(
        "D2",
        "HOLD",
        (409,),
        ("organization in measurement is not same as",),
        account=True,
        remedy="Check organization_id.",
    ),
    Rule(
        "D3",
        "HOLD",
        (409,),
        ("in measurement is not part of your organization",),
        account=True,
        remedy="Check organization_id.",
    ),
    Rule(
        "D5",
        "HOLD",
        (409,),
        ("invalid device id",),
        remedy=REGISTER,
    ),
    Rule(
        "D6",
        "HOLD",
        (409,),
        ("device doesnt belong",),
        remedy=f"The device is another organisation's. {RENAME}",
    ),
    Rule("S2", "FIX", (409,), ("can not allow multiple reads",), remedy=FIX),
    Rule("H4", "MERGE", (409,), ("meter read value should be greater",), types=("History",)),
    Rule("S6", "MERGE", (409,), ("meter read value should be greater",)),
    Rule("Z1", "FIX", (400, 409), ("invalid time zone", "invalid timezone"), remedy=FIX),
    Rule("Z2", "FIX", (409,), ("invalid date sent",), remedy=FIX),
    Rule("S4", "FIX", (409,), ("null is less than or equal to device onboarding date",), remedy=FIX),
    Rule("E1", "FIX", (409,), ("is less than or equal to device onboarding date",), remedy=ONBOARDING),
    Rule(
        "E2",
        "QUAR",
        (409,),
        ("should be greater than to device commissioningdate date",),
        types=("Delta", "Aggregate"),
        remedy=COMMISSIONING,
    ),
    Rule("E3", "RETRY", (409,), ("is greater than current date",), remedy="Check the clocks, ours and the platform's."),
    Rule("E4", "FIX", (409,), ("invalid end date, valid format", "one ore more end date values"), remedy=FIX),
    Rule(
        "L1",
        "HOLD",
        (404,),
        ("in this device you can add read for",),
        remedy="Set read_type to the type the platform names, then: heliograph backlog retry METER DAYS.",
    ),
    Rule("L2", "DONE?", (409,), ("is less than last sent meter read date",), types=("Delta",)),
    Rule(
        "A1",
        "DONE?",
        (409,),
        ("is less than last sent mter read date/value", "is less than last sent meter read date/value"),
        types=("Aggregate",),
    ),
    Rule("A4", "DONE?", (409,), pattern=r"failed, maxenergy: 0(\.0+)?", types=("Aggregate",)),
    Rule("L3", "DONE?", (409,), pattern=r"failed, maxenergy: 0(\.0+)?"),
    Rule("A2", "MERGE", (409,), pattern=MAX_ENERGY, types=("Aggregate",), remedy=CEILING),
    Rule("L4", "MERGE", (409,), pattern=MAX_ENERGY, remedy=CEILING),
    Rule(
        "H1", "FIX", (409,), ("invalid start date and/or end date", "one ore more start date and end date"), remedy=FIX
    ),
    Rule("H2", "FIX", (409,), ("starttimestamp should be prior to endtimestamp",), remedy=FIX),
    Rule(
        "H3",
        "FIX",
        (409,),
        ("for history reading start timestamp and end timestamp should be prior",),
        remedy="The day ends after the device was registered: heliograph backlog retry METER DAYS sends it as usual.",
    ),
    Rule(
        "H5",
        "QUAR",
        (409,),
        (
            "starttimestamp should be greater than to device commissioning",
            "endtimestamp should be greater than to device commissioning",
            "one or more measurements starttimestamp should be greater",
            "one or more measurements endtimestamp should be greater",
        ),
        types=("History",),
        remedy=COMMISSIONING,
    ),
    Rule(
        "H6",
        "QUAR",
        (409,),
        ("should be within 3 year",),
        remedy="More than three years older than the device, or it ends with the registration: then DEVICE Read helps.",
    ),
    Rule("H7", "DONE?", (409,), ("already one or more historical entries",)),
    Rule(
        "H8",
        "MERGE",
        (409,),
        ("failed,read value is greater than from maxenergy", "failed, read value is greater than from maxenergy"),
        remedy=CEILING,
    ),
    Rule("T11", "RETRY-RB", (500,), ("internal server error",), remedy=LOOK),
    Rule("U404", "HOLD", (404,), ("cannot post", "cannot get"), account=True, remedy=BASE_URL),
)

# Codes of the newest documents (§12), a hint where no text fitted: two of their pages give one code two meanings.
CODES: dict[str, Rule] = {
    rule.id: rule
    for rule in (
        *(Rule(f"E-{n}", "AUTH", remedy="Check the token, or user name and password.") for n in (1001, 1002)),
        *(Rule(f"E-{n}", "HOLD", account=True, remedy=ACCOUNT) for n in range(1003, 1007)),
        *(Rule(f"E-{n}", "FIX", remedy=FIX) for n in (5001, 5002, 5003, 5006, 5012, 5013, 5015)),
        Rule("E-5004", "DONE?"),
        *(Rule(f"E-{n}", "HOLD", remedy=f"Check organization_id. {RENAME}") for n in (5005, 5016)),
        Rule("E-5007", "FIX", remedy=ONBOARDING),
        Rule("E-5008", "QUAR", remedy=COMMISSIONING),
        *(Rule(f"E-{n}", "RETRY", remedy="Check the clocks, ours and the platform's.") for n in (5009, 5011)),
        Rule("E-5010", "MERGE"),
        *(Rule(f"E-{n}", "RETRY-RB", remedy=LOOK) for n in range(5201, 5205)),
    )
}

# What is left once no text and no code fitted, by status (§13, steps 3 to 8).
REST: dict[int, Rule] = {
    403: replace(next(rule for rule in RULES if rule.id == "T6"), remedy=f"The account may not do this. {ACCOUNT}"),
    404: next(rule for rule in RULES if rule.id == "U404"),
    412: next(rule for rule in RULES if rule.id == "T7"),
    413: next(rule for rule in RULES if rule.id == "T2" and rule.action == "FIX"),
}
T3 = next(rule for rule in RULES if rule.id == "T3")
T8 = Rule("T8", "FIX", remedy=FIX)
T9 = Rule("T9", "FIX", remedy=FIX)
T10 = Rule("T10", "RETRY-RB", remedy=f"The platform's database is in trouble. {LOOK}")
UNKNOWN = Rule("U409", "THRICE", remedy="The platform refuses this for a reason we do not know; ask it with this text.")
FAULTY = Rule("U5xx", "RETRY-RB", remedy=LOOK)
SHAPE = Rule("shape", "RETRY-RB", remedy=LOOK)

MERGING = frozenset(rule.id for rule in (*RULES, *CODES.values()) if rule.action == "MERGE")

# Why a read that the platform says it has cannot be found there.
NOT_FOUND = {
    "L2": "a later read was accepted before this one, so it can no longer be sent",
    "A5": "the platform counts this value as sent, but holds no read of it; later reads do not include it either",
}


# What a refused day cannot be cured of: it is set aside for good, and stops nobody.
ASIDE = {"E1": "aside/E1", "E-5007": "aside/E1", "E2": "aside/E2", "E-5008": "aside/E2"}


def classify(answer: Answer, read_type: str) -> Rule:
    """The rule of an answer that is not a success: by text, then by code, then by status and shape."""
    found = answer.json if isinstance(answer.json, dict) else {}
    message = normal(found.get("message"))
    for rule in RULES:
        if (
            (not rule.status or answer.status in rule.status)
            and (not rule.types or read_type in rule.types)
            and (not rule.contains or any(text in message for text in rule.contains))
            and (not rule.pattern or re.fullmatch(rule.pattern, message))
            and (not rule.member or rule.member in found)
        ):
            return rule
    code = found.get("error")
    if isinstance(code, str) and re.fullmatch(r"E-\d{4}", code):
        return CODES.get(code, FAULTY if answer.status >= 500 else UNKNOWN)
    leaked = set(found) == {"statusCode", "message"} and isinstance(found["message"], str)
    if answer.status in REST and not (answer.status == 404 and leaked):
        return REST[answer.status]
    if answer.status == 400 and isinstance(found.get("message"), list):
        return T9
    if answer.status == 400 and "error" in found:
        return T8
    if leaked:
        return T10  # the database's own refusal, leaked with its own status
    if answer.status == 401:
        return T3
    if answer.status >= 500:
        return FAULTY
    return UNKNOWN if found else SHAPE


def normal(message: object) -> str:
    """Lower case, collapsed blanks, no apostrophes: the texts drift between the generations of the server (§0.1)."""
    parts = message if isinstance(message, list) else [message]
    text = "; ".join(part for part in parts if isinstance(part, str))
    return " ".join(text.lower().replace("'", "").replace("’", "").split())


def transport(found: Exchange) -> Verdict:
    """T1: no status came back."""
    assert not isinstance(found, Answer)
    verdict = fault(found)
    if isinstance(found, NotSent) and found.rule != "connect":
        return verdict  # the token or the configuration, not the line
    return replace(verdict, rule="T1")
