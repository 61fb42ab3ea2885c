ALTER TABLE collection_facts ADD COLUMN sources jsonb NOT NULL DEFAULT '{}';
