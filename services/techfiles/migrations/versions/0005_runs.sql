ALTER TABLE collections ADD COLUMN fact_sources jsonb NOT NULL DEFAULT '{}';

ALTER TABLE exports ADD COLUMN incomplete boolean NOT NULL DEFAULT false;

CREATE INDEX tech_files_list_state ON tech_files (owner, state, created_at DESC, id DESC);

ALTER TABLE runs
    ADD COLUMN source_product_id uuid,
    ADD COLUMN run_externally boolean NOT NULL DEFAULT false,
    ADD COLUMN make_zip boolean NOT NULL DEFAULT false,
    ADD COLUMN zip_export_id uuid,
    ADD COLUMN round integer NOT NULL DEFAULT 1,
    ADD COLUMN resumed_at timestamptz,
    ADD COLUMN spent_ms bigint NOT NULL DEFAULT 0;
CREATE INDEX runs_list_state ON runs (owner, state, created_at DESC, id DESC);
CREATE INDEX runs_list_collection ON runs (owner, collection_id, created_at DESC, id DESC);

ALTER TABLE run_steps
    ADD COLUMN round integer NOT NULL DEFAULT 1,
    ADD COLUMN earlier_credits bigint NOT NULL DEFAULT 0;
DROP INDEX run_steps_end;
CREATE UNIQUE INDEX run_steps_end ON run_steps (run_id, name, round) WHERE state IN ('completed', 'failed', 'skipped');
