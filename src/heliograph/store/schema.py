"""The schema as a list of migrations: appended, never edited once shipped.

Plain rowid tables without further indexes on what is written every minute: an index on (meter, at) would more than
double the bytes a card has to take (one leaf page per meter and commit). Readings of one meter are linked instead:
`reading.prev` is the meter's reading before, `meter.last` its newest. Moments are integer microseconds since 1970, UTC.
"""

from __future__ import annotations

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

migrations = Migrations("heliograph")

_V1 = """
CREATE TABLE site (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    name TEXT NOT NULL,
    timezone TEXT NOT NULL
) STRICT;

CREATE TABLE map (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    text TEXT NOT NULL              -- the whole file, so that a figure can be explained when the file is gone
) STRICT;

CREATE TABLE boot (
    id INTEGER PRIMARY KEY,
    boot TEXT NOT NULL,
    software TEXT NOT NULL,
    sqlite TEXT NOT NULL,
    at INTEGER NOT NULL,
    UNIQUE (boot, software)
) STRICT;

CREATE TABLE meter (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    production TEXT NOT NULL,       -- the counter that is production here
    serial TEXT,
    last INTEGER                    -- newest reading
) STRICT;

CREATE TABLE layout (
    id INTEGER PRIMARY KEY,
    names TEXT NOT NULL UNIQUE      -- of the quantities in reading.vals, JSON: written once, not with every row
) STRICT;

CREATE TABLE reading (
    id INTEGER PRIMARY KEY,
    prev INTEGER,                   -- the reading of this meter before
    meter INTEGER NOT NULL,
    at INTEGER NOT NULL,
    boot INTEGER NOT NULL,
    since_boot INTEGER NOT NULL,    -- milliseconds
    trusted INTEGER NOT NULL,
    index_wh INTEGER,               -- production counter; NULL when absent
    doubt TEXT NOT NULL,            -- why it is not believed; '' when it is
    unit INTEGER,
    function TEXT,
    address INTEGER,
    map INTEGER,
    words BLOB NOT NULL,            -- raw register words of the production counter, big-endian
    layout INTEGER NOT NULL,
    vals TEXT NOT NULL              -- the other quantities, JSON, in the order of the layout
) STRICT;

CREATE TABLE border (
    id INTEGER PRIMARY KEY,
    meter INTEGER NOT NULL REFERENCES meter,
    at INTEGER NOT NULL,
    index_wh INTEGER NOT NULL,
    total_wh INTEGER NOT NULL,
    method TEXT NOT NULL,
    before INTEGER NOT NULL REFERENCES reading,
    after INTEGER REFERENCES reading,
    UNIQUE (meter, at)
) STRICT;

CREATE TABLE day (
    id INTEGER PRIMARY KEY,
    meter INTEGER NOT NULL REFERENCES meter,
    day TEXT NOT NULL,
    opening INTEGER NOT NULL REFERENCES border,
    closing INTEGER NOT NULL REFERENCES border,
    period_wh INTEGER NOT NULL CHECK (period_wh >= 0),
    total_wh INTEGER NOT NULL,
    estimated INTEGER NOT NULL,
    closed_at INTEGER NOT NULL,
    software TEXT NOT NULL,
    UNIQUE (meter, day)
) STRICT;

-- One day, one value: the bytes of a closed day never change.
CREATE TRIGGER day_is_final BEFORE UPDATE ON day BEGIN SELECT RAISE(ABORT, 'a closed day never changes'); END;
CREATE TRIGGER day_stays BEFORE DELETE ON day BEGIN SELECT RAISE(ABORT, 'a closed day is never deleted'); END;
CREATE TRIGGER border_is_final BEFORE UPDATE ON border BEGIN SELECT RAISE(ABORT, 'a border never changes'); END;
CREATE TRIGGER border_stays BEFORE DELETE ON border BEGIN SELECT RAISE(ABORT, 'a border is never deleted'); END;

CREATE TABLE held (
    id INTEGER PRIMARY KEY,
    meter INTEGER NOT NULL REFERENCES meter,
    day TEXT NOT NULL,
    kind TEXT NOT NULL,
    reason TEXT NOT NULL,
    since INTEGER NOT NULL,
    UNIQUE (meter, day)
) STRICT;

CREATE TABLE claim (
    id INTEGER PRIMARY KEY,
    uplink TEXT NOT NULL,
    at INTEGER NOT NULL,
    path TEXT NOT NULL,
    body BLOB NOT NULL,             -- zlib
    rows INTEGER NOT NULL
) STRICT;

CREATE TABLE outbox (
    id INTEGER PRIMARY KEY,
    uplink TEXT NOT NULL,
    day INTEGER NOT NULL REFERENCES day,
    meter INTEGER NOT NULL,         -- meter and date of the day, so that the next rows are found without a sort
    date TEXT NOT NULL,
    remote_id TEXT NOT NULL,
    state TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    due INTEGER NOT NULL,           -- not to be touched before
    rule TEXT NOT NULL DEFAULT '',
    answer TEXT NOT NULL DEFAULT '',
    remedy TEXT NOT NULL DEFAULT '',
    process_id TEXT,
    claim INTEGER REFERENCES claim,
    changed INTEGER NOT NULL,
    UNIQUE (uplink, day)
) STRICT;
CREATE INDEX outbox_open ON outbox (uplink, meter, date) WHERE state NOT IN ('accepted', 'confirmed');
CREATE INDEX outbox_accepted ON outbox (uplink, due) WHERE state = 'accepted';

CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    text TEXT NOT NULL
) STRICT;

CREATE TABLE learned (
    subject TEXT PRIMARY KEY,       -- what a device or platform taught us, such as its largest request
    value TEXT NOT NULL
) STRICT;
"""


@migrations()
def v1(db: Database) -> None:
    # One statement at a time: executescript would commit the migration's own transaction first.
    for statement in _statements(_V1):
        db.execute(statement)


_SEAMS = """
CREATE TABLE seam (
    id INTEGER PRIMARY KEY,
    meter INTEGER NOT NULL REFERENCES meter,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,             -- swap, reset, rollover
    old_wh INTEGER NOT NULL,
    new_wh INTEGER NOT NULL,
    old_serial TEXT,
    new_serial TEXT,
    recorded INTEGER NOT NULL,
    note TEXT NOT NULL
) STRICT;
CREATE TRIGGER seam_is_final BEFORE UPDATE ON seam BEGIN SELECT RAISE(ABORT, 'a seam never changes'); END;
CREATE TRIGGER seam_stays BEFORE DELETE ON seam BEGIN SELECT RAISE(ABORT, 'a seam is never deleted'); END;
ALTER TABLE reading ADD COLUMN seam INTEGER;    -- the seam that settled its doubt
ALTER TABLE held ADD COLUMN released INTEGER;   -- when a person said how its energy is split
"""


@migrations()
def v2(db: Database) -> None:
    for statement in _statements(_SEAMS):
        db.execute(statement)


_CHAIN = """
CREATE TABLE chain (
    seq INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,             -- canonical JSON (core/chain.py)
    hash BLOB NOT NULL
) STRICT;
CREATE INDEX chain_config ON chain (seq) WHERE kind = 'config';
CREATE TRIGGER chain_is_final BEFORE UPDATE ON chain BEGIN SELECT RAISE(ABORT, 'an entry never changes'); END;
CREATE TRIGGER chain_stays BEFORE DELETE ON chain BEGIN SELECT RAISE(ABORT, 'an entry is never deleted'); END;
CREATE TABLE checkpoint (
    seq INTEGER PRIMARY KEY REFERENCES chain,
    hash BLOB NOT NULL,
    at INTEGER NOT NULL,
    site TEXT NOT NULL,
    key BLOB NOT NULL,              -- public, Ed25519
    signature BLOB NOT NULL
) STRICT;
CREATE TRIGGER checkpoint_is_final BEFORE UPDATE ON checkpoint
    BEGIN SELECT RAISE(ABORT, 'a checkpoint never changes'); END;
CREATE TRIGGER checkpoint_stays BEFORE DELETE ON checkpoint
    BEGIN SELECT RAISE(ABORT, 'a checkpoint is never deleted'); END;
"""


@migrations()
def v3(db: Database) -> None:
    for statement in _statements(_CHAIN):
        db.execute(statement)


_COVERAGE = """
ALTER TABLE seam ADD COLUMN corrects INTEGER REFERENCES seam;   -- corrections: the seam that said something else
ALTER TABLE seam ADD COLUMN moves_wh INTEGER;   -- by how much a correction moves the continuous counter
ALTER TABLE seam ADD COLUMN floor_wh INTEGER;   -- the continuous counter, which never falls below this after it

-- How well a meter was read on a local day: one row that grows with the day and is kept for ever.
CREATE TABLE coverage (
    id INTEGER PRIMARY KEY,
    meter INTEGER NOT NULL REFERENCES meter,
    day TEXT NOT NULL,
    every INTEGER NOT NULL,         -- poll period in milliseconds: what could have been expected
    good INTEGER NOT NULL,
    doubtful INTEGER NOT NULL,
    absent INTEGER NOT NULL,
    timeout INTEGER NOT NULL,
    garbled INTEGER NOT NULL,
    refused INTEGER NOT NULL,
    unreachable INTEGER NOT NULL,
    stranger INTEGER NOT NULL,      -- something answers, but it is another meter
    unstored INTEGER NOT NULL,      -- read, but the store could not take it
    first INTEGER,                  -- good readings
    last INTEGER,
    failed INTEGER,                 -- the latest round without one, and of which kind it was
    failure TEXT,
    gaps TEXT NOT NULL,             -- JSON, longest first: [from, to, cause]
    UNIQUE (meter, day)
) STRICT;
"""


@migrations()
def v4(db: Database) -> None:
    for statement in _statements(_COVERAGE):
        db.execute(statement)


_ATTEMPTS = """
-- What was tried with rows of the outbox, and what came of it: one record for all rows of an answer.
CREATE TABLE attempt (
    id INTEGER PRIMARY KEY,
    uplink TEXT NOT NULL,
    first INTEGER NOT NULL,         -- lowest of the rows
    rows TEXT NOT NULL,             -- of the outbox: "7", "7-3006", "7-13/2", with commas between
    asked TEXT NOT NULL,            -- send, follow, read-back, device; person: somebody decided
    claim INTEGER REFERENCES claim, -- the newest request it was about
    at INTEGER NOT NULL,
    last INTEGER NOT NULL,          -- the same came again until then
    times INTEGER NOT NULL,
    state TEXT NOT NULL,            -- of the rows from there on
    rule TEXT NOT NULL,
    answer TEXT NOT NULL,
    remedy TEXT NOT NULL
) STRICT;
CREATE INDEX attempt_first ON attempt (first);
-- Few rows of a long backlog are under way or refused; a round must find them without looking at those that are due.
DROP INDEX outbox_accepted;
CREATE INDEX outbox_under_way ON outbox (uplink, state, due) WHERE state NOT IN ('due', 'confirmed');
"""


@migrations()
def v5(db: Database) -> None:
    for statement in _statements(_ATTEMPTS):
        db.execute(statement)


_MEANINGS = """
ALTER TABLE meter ADD COLUMN meaning TEXT;      -- JSON: what the production counter meant to what is booked of it
ALTER TABLE seam ADD COLUMN old_meaning TEXT;   -- JSON, where the map or the site's settings changed
ALTER TABLE seam ADD COLUMN new_meaning TEXT;
"""


@migrations()
def v6(db: Database) -> None:
    for statement in _statements(_MEANINGS):
        db.execute(statement)


def _statements(script: str) -> list[str]:
    import sqlite3

    found, text = [], ""
    for line in script.splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            found.append(text)
            text = ""
    return found
