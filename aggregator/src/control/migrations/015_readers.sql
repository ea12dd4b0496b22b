-- reader: the one to whom this copy of a mail is still to go, because the server did not take it for them with the
-- others; empty: to all of the channel. Such copies wait for one another, reader by reader, and nothing else waits for
-- them.
ALTER TABLE deliveries ADD COLUMN reader TEXT NOT NULL DEFAULT '';

-- Before, the readers stood in the message, and one row was for all of them.
INSERT INTO deliveries (channel, key, page, event, message, state, made_ms, due_ms, attempts, error, epoch, reader)
SELECT d.channel, d.key || '.' || r.value, d.page, d.event, d.message, 1, d.made_ms, d.due_ms, d.attempts, d.error, d.epoch, r.value
FROM deliveries d, json_each(iif(json_valid(d.message), d.message, '{}'), '$.readers') r
WHERE d.state = 1
ORDER BY d.seq, r.key;
UPDATE deliveries SET state = 3, ended_ms = due_ms
WHERE state = 1 AND reader = '' AND json_valid(message) AND json_array_length(message, '$.readers') > 0;

DROP INDEX deliveries_of_page;
CREATE INDEX deliveries_of_page ON deliveries (channel, page, seq) WHERE state = 1 AND reader = '';
CREATE INDEX deliveries_of_reader ON deliveries (channel, reader, seq) WHERE state = 1 AND reader <> '';
