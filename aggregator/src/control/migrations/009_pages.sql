-- What people are told. A page is the incidents they are told of together, under the number of the first; scope is
-- JSON. Open pages have no closed_ms; acted_ms is when an operator first did something about it.
CREATE TABLE pages (
    number     INTEGER PRIMARY KEY,
    id         TEXT NOT NULL,
    scope      TEXT NOT NULL,
    severity   INTEGER NOT NULL,
    opened_ms  INTEGER NOT NULL,
    grown_ms   INTEGER NOT NULL,
    clear_ms   INTEGER,
    tellings   INTEGER NOT NULL,
    told_hosts INTEGER NOT NULL,
    closed_ms  INTEGER,
    acted_ms   INTEGER,
    epoch      INTEGER NOT NULL
) STRICT;
CREATE INDEX pages_open ON pages (number) WHERE closed_ms IS NULL;
CREATE INDEX pages_by_opening ON pages (opened_ms);

-- flap, flap_ms: decayed count of changes, and the aggregator's time of the last.
ALTER TABLE incidents ADD COLUMN page INTEGER;
ALTER TABLE incidents ADD COLUMN joined_ms INTEGER;
ALTER TABLE incidents ADD COLUMN flap REAL NOT NULL DEFAULT 0;
ALTER TABLE incidents ADD COLUMN flap_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE incidents ADD COLUMN flapping INTEGER NOT NULL DEFAULT 0;
CREATE INDEX incidents_by_key ON incidents (host_id, rule, subject, number);
CREATE INDEX incidents_by_page ON incidents (page);

-- Changes of incidents that whoever tells people has not taken in. Written with the change, deleted with what follows
-- from it. change: 1 opened, 2 cleared, 3 acknowledged, 4 unacknowledged.
CREATE TABLE news (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,
    number   INTEGER NOT NULL,
    change   INTEGER NOT NULL,
    epoch    INTEGER NOT NULL
) STRICT;
INSERT INTO news (number, change, epoch) SELECT number, 1, epoch FROM incidents WHERE state = 1 ORDER BY number;

-- One message for one channel. key is the same however often it is sent. state: 1 waiting, 2 delivered, 3 held back by
-- the channel's limit, 4 given up.
CREATE TABLE deliveries (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    channel      TEXT NOT NULL,
    key          TEXT NOT NULL,
    page         INTEGER NOT NULL,
    event        TEXT NOT NULL,
    message      TEXT NOT NULL,
    state        INTEGER NOT NULL,
    made_ms      INTEGER NOT NULL,
    due_ms       INTEGER NOT NULL,
    attempts     INTEGER NOT NULL,
    error        TEXT NOT NULL,
    ended_ms     INTEGER,
    epoch        INTEGER NOT NULL,
    UNIQUE (channel, key)
) STRICT;
CREATE INDEX deliveries_waiting ON deliveries (channel, due_ms) WHERE state = 1;
CREATE INDEX deliveries_ended ON deliveries (channel, ended_ms) WHERE state <> 1;
