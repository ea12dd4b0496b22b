-- What whoever tells people took in, and in which round: a change of an incident as in news, or (number and change 0) a
-- round in which something followed from time alone. With it what was told can be told again (`muster replay`).
CREATE TABLE turns (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms    INTEGER NOT NULL,
    number   INTEGER NOT NULL,
    change   INTEGER NOT NULL,
    until_ms INTEGER,
    epoch    INTEGER NOT NULL
) STRICT;
CREATE INDEX turns_by_time ON turns (at_ms);
