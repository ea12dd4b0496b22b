-- What is refused beyond the life of its own record: machine/<hash> may not enrol, serial/<serial> is an
-- operator's certificate that was withdrawn. A host's own identity is refused by removed_ms.
CREATE TABLE denied (
    subject TEXT PRIMARY KEY,
    at_ms   INTEGER NOT NULL,
    epoch   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX certificates_by_holder ON certificates (holder);
