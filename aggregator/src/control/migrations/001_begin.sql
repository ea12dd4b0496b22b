-- Control state of an aggregator. Times are UTC milliseconds; every durable row carries the epoch it was
-- written in, so that an aggregator that lost its claim cannot write later.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO meta (key, value) VALUES ('epoch', '1');

-- name is for people: the kernel's host name, with a number when another host has it.
CREATE TABLE hosts (
    host_id           TEXT PRIMARY KEY,
    name              TEXT NOT NULL UNIQUE,
    facts             TEXT NOT NULL,
    labels            TEXT NOT NULL,
    token_labels      TEXT NOT NULL,
    created_ms        INTEGER NOT NULL,
    cert_serial       TEXT NOT NULL,
    cert_not_after_ms INTEGER NOT NULL,
    removed_ms        INTEGER,
    epoch             INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- secret_hash is SHA-256; the secret itself is nowhere.
CREATE TABLE tokens (
    id          TEXT PRIMARY KEY,
    secret_hash BLOB NOT NULL,
    uses        INTEGER NOT NULL,
    labels      TEXT NOT NULL,
    created_ms  INTEGER NOT NULL,
    expires_ms  INTEGER NOT NULL,
    revoked_ms  INTEGER,
    failures    INTEGER NOT NULL DEFAULT 0,
    epoch       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Which key used which token, so that a lost answer can be asked for again.
CREATE TABLE token_uses (
    token_id  TEXT NOT NULL REFERENCES tokens (id),
    spki_hash BLOB NOT NULL,
    host_id   TEXT NOT NULL,
    at_ms     INTEGER NOT NULL,
    epoch     INTEGER NOT NULL,
    PRIMARY KEY (token_id, spki_hash)
) STRICT, WITHOUT ROWID;

CREATE TABLE operators (
    name       TEXT PRIMARY KEY,
    role       TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    epoch      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Every certificate that was issued to an agent or an operator.
CREATE TABLE certificates (
    serial       TEXT PRIMARY KEY,
    holder       TEXT NOT NULL,
    spki_hash    BLOB NOT NULL,
    issued_ms    INTEGER NOT NULL,
    not_after_ms INTEGER NOT NULL,
    epoch        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE incidents (
    id          TEXT PRIMARY KEY,
    number      INTEGER NOT NULL UNIQUE,
    host_id     TEXT NOT NULL,
    rule        TEXT NOT NULL,
    subject     TEXT NOT NULL,
    severity    INTEGER NOT NULL,
    state       INTEGER NOT NULL,
    summary     TEXT NOT NULL,
    opened_ms   INTEGER NOT NULL,
    since_ms    INTEGER NOT NULL,
    resolved_ms INTEGER,
    epoch       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One open incident per cause; state 1 is open.
CREATE UNIQUE INDEX incidents_one_open ON incidents (host_id, rule, subject) WHERE state = 1;
CREATE INDEX incidents_by_opening ON incidents (opened_ms);

CREATE TABLE incident_transitions (
    incident_id TEXT NOT NULL REFERENCES incidents (id),
    seq         INTEGER NOT NULL,
    at_ms       INTEGER NOT NULL,
    to_state    INTEGER NOT NULL,
    evidence    TEXT NOT NULL,
    op_id       TEXT NOT NULL UNIQUE,
    epoch       INTEGER NOT NULL,
    PRIMARY KEY (incident_id, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
    seq     INTEGER PRIMARY KEY,
    at_ms   INTEGER NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL,
    outcome TEXT NOT NULL,
    epoch   INTEGER NOT NULL
) STRICT;
