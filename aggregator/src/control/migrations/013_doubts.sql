-- Times whose data may be of two machines with one identity: from the first of the signs that put a host into
-- quarantine until it came into quarantine. Kept when the host is released.
CREATE TABLE doubts (
    host_id  TEXT NOT NULL,
    from_ms  INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,
    epoch    INTEGER NOT NULL,
    PRIMARY KEY (host_id, from_ms)
) STRICT;
