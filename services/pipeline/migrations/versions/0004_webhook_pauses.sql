-- Until when a receiver asked to be left alone (Retry-After).
ALTER TABLE webhook_endpoints ADD COLUMN paused_until timestamptz;
