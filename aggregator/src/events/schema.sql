-- What happened on hosts, in the order received, and what their flight recorders held.
-- auto_vacuum must be chosen before the first table; it gives back the room of what is dropped.
CREATE TABLE event (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    host        BLOB    NOT NULL,
    -- Life of the agent, number of the frame and place in it: an event that comes again is known by these.
    incarnation INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    place       INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    at_ms       INTEGER NOT NULL,
    kind        INTEGER NOT NULL,
    late        INTEGER NOT NULL,
    -- muster.v1.Event
    event       BLOB    NOT NULL
);
CREATE UNIQUE INDEX event_key ON event (host, incarnation, seq, place);
CREATE INDEX event_of_host ON event (host, number);
CREATE INDEX event_received ON event (received_ms);

CREATE TABLE recording (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    host        BLOB    NOT NULL,
    asked_ms    INTEGER NOT NULL,
    from_ms     INTEGER NOT NULL,
    to_ms       INTEGER NOT NULL,
    parts       INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    UNIQUE (host, asked_ms)
);
CREATE TABLE recording_part (
    recording   INTEGER NOT NULL REFERENCES recording (number) ON DELETE CASCADE,
    part        INTEGER NOT NULL,
    -- muster.v1.RecordingPart
    bytes       BLOB    NOT NULL,
    PRIMARY KEY (recording, part)
) WITHOUT ROWID;
