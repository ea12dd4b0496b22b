-- lead: JSON of the incident that gave a page its number, as it was when people were told first; NULL for pages that
-- were closed before. Of those that are open it stands in what was told.
ALTER TABLE pages ADD COLUMN lead TEXT;
UPDATE pages SET lead = (
    SELECT json_extract(d.message, '$.lead') FROM deliveries d
    WHERE d.page = pages.number AND d.made_ms >= pages.opened_ms AND json_valid(d.message)
    ORDER BY d.seq LIMIT 1
) WHERE closed_ms IS NULL;

-- The first message that is due, and whether another of its page goes before it, however many wait.
CREATE INDEX deliveries_in_order ON deliveries (channel, seq) WHERE state = 1;
CREATE INDEX deliveries_of_page ON deliveries (channel, page, seq) WHERE state = 1;
