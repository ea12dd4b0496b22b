-- Who sees to an incident. It ends with the incident, or at ack_until_ms.
ALTER TABLE incidents ADD COLUMN ack_by TEXT;
ALTER TABLE incidents ADD COLUMN ack_ms INTEGER;
ALTER TABLE incidents ADD COLUMN ack_until_ms INTEGER;
ALTER TABLE incidents ADD COLUMN ack_text TEXT;

-- What happened to an incident beside its state. what is a word, actor an operator or empty.
CREATE TABLE incident_notes (
    seq         INTEGER PRIMARY KEY,
    incident_id TEXT NOT NULL REFERENCES incidents (id),
    at_ms       INTEGER NOT NULL,
    what        TEXT NOT NULL,
    actor       TEXT NOT NULL,
    text        TEXT NOT NULL,
    epoch       INTEGER NOT NULL
) STRICT;
CREATE INDEX incident_notes_by_incident ON incident_notes (incident_id);

-- Times in which nobody is told. kind 1 is a silence, 2 a maintenance window; with days (bit 0 is Monday) it recurs
-- every week at at_minute after midnight in zone, for minutes.
CREATE TABLE quiets (
    number    INTEGER PRIMARY KEY AUTOINCREMENT,
    kind      INTEGER NOT NULL,
    selector  TEXT NOT NULL,
    rule      TEXT NOT NULL,
    subject   TEXT NOT NULL,
    starts_ms INTEGER NOT NULL,
    ends_ms   INTEGER,
    days      INTEGER,
    at_minute INTEGER,
    minutes   INTEGER,
    zone      TEXT,
    text      TEXT NOT NULL,
    made_by   TEXT NOT NULL,
    made_ms   INTEGER NOT NULL,
    ended_by  TEXT,
    ended_ms  INTEGER,
    epoch     INTEGER NOT NULL
) STRICT;
