-- When the host got its identity, or another machine took its place: orders certificates that another aggregator of the
-- fleet issued. 0 for hosts that joined before this was written down.
ALTER TABLE hosts ADD COLUMN joined_ms INTEGER NOT NULL DEFAULT 0;
