-- An operator's certificate that was renewed: the serial of the one before it, when its holder signed in at the admin
-- socket (renewals end a while after that), and when it was first used, from which the one before it is refused.
ALTER TABLE certificates ADD COLUMN renewed_from TEXT;
ALTER TABLE certificates ADD COLUMN login_ms INTEGER;
ALTER TABLE certificates ADD COLUMN used_ms INTEGER;
CREATE INDEX certificates_by_predecessor ON certificates (renewed_from) WHERE renewed_from IS NOT NULL;

-- SHA-256 over the hash of the line before and this line; the lines of before are chained right after this. The number
-- and hash of the newest line are also kept in meta, so that lines missing at the end are missed.
ALTER TABLE audit ADD COLUMN hash BLOB;
