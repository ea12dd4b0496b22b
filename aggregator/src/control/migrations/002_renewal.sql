-- A renewed certificate waits here until it is used for the first time; then it takes the place of cert_serial.
ALTER TABLE hosts ADD COLUMN next_serial TEXT;
ALTER TABLE hosts ADD COLUMN next_not_after_ms INTEGER;

-- A key is certified once.
CREATE INDEX certificates_by_key ON certificates (spki_hash);
