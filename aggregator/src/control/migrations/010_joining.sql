-- A token's limits: source networks (separated by commas; empty: from anywhere), whether a person must approve each
-- host, and the host whose place the one that joins takes.
ALTER TABLE tokens ADD COLUMN networks TEXT NOT NULL DEFAULT '';
ALTER TABLE tokens ADD COLUMN approve INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tokens ADD COLUMN replaces TEXT;

-- Hosts that showed a good token and wait for a person. decision: NULL while there is none, approved, denied, joined.
CREATE TABLE pending (
    number     INTEGER PRIMARY KEY,
    token_id   TEXT NOT NULL REFERENCES tokens (id),
    spki_hash  BLOB NOT NULL,
    hostname   TEXT NOT NULL,
    facts      TEXT NOT NULL,
    address    TEXT NOT NULL,
    asked_ms   INTEGER NOT NULL,
    decision   TEXT,
    decided_by TEXT,
    decided_ms INTEGER,
    epoch      INTEGER NOT NULL,
    UNIQUE (token_id, spki_hash)
) STRICT;

-- What tells copies of a host apart: the last two values it was given, its last session number, this boot and those
-- before it (hexadecimal, separated by commas, newest first), signs of a copy (milliseconds, separated by commas), and
-- once there were too many: since when, and which boot alone is listened to. bundle_version: of the trust bundle
-- that the host said it holds.
ALTER TABLE hosts ADD COLUMN ratchet BLOB;
ALTER TABLE hosts ADD COLUMN ratchet_before BLOB;
ALTER TABLE hosts ADD COLUMN last_session INTEGER;
ALTER TABLE hosts ADD COLUMN boots TEXT NOT NULL DEFAULT '';
ALTER TABLE hosts ADD COLUMN copy_signs TEXT NOT NULL DEFAULT '';
ALTER TABLE hosts ADD COLUMN quarantined_ms INTEGER;
ALTER TABLE hosts ADD COLUMN bundle_version INTEGER;

-- Which generation of the authority signed it.
ALTER TABLE certificates ADD COLUMN generation INTEGER NOT NULL DEFAULT 1;
