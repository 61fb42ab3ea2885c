-- Jobs say what they wait for, and faults of their own are told from what passes: see shared/background/attempts.py.
ALTER TABLE attempts DROP CONSTRAINT attempts_outcome;
ALTER TABLE attempts ADD CONSTRAINT attempts_outcome
    CHECK (outcome IN ('running', 'succeeded', 'failed', 'retried', 'waited', 'cancelled', 'lost'));

ALTER TABLE renditions
    ADD COLUMN faults integer NOT NULL DEFAULT 0,
    ADD COLUMN losses integer NOT NULL DEFAULT 0,
    ADD COLUMN waits_for text NOT NULL DEFAULT '',
    ADD COLUMN waiting_since timestamptz,
    ADD CONSTRAINT renditions_wait CHECK ((waits_for = '') = (waiting_since IS NULL));
CREATE INDEX renditions_waiting ON renditions (waiting_since) WHERE waiting_since IS NOT NULL;
ALTER TABLE imports
    ADD COLUMN faults integer NOT NULL DEFAULT 0,
    ADD COLUMN losses integer NOT NULL DEFAULT 0,
    ADD COLUMN waits_for text NOT NULL DEFAULT '',
    ADD COLUMN waiting_since timestamptz,
    ADD CONSTRAINT imports_wait CHECK ((waits_for = '') = (waiting_since IS NULL));
CREATE INDEX imports_waiting ON imports (waiting_since) WHERE waiting_since IS NOT NULL;
ALTER TABLE documents
    ADD COLUMN faults integer NOT NULL DEFAULT 0,
    ADD COLUMN losses integer NOT NULL DEFAULT 0,
    ADD COLUMN waits_for text NOT NULL DEFAULT '',
    ADD COLUMN waiting_since timestamptz,
    ADD CONSTRAINT documents_wait CHECK ((waits_for = '') = (waiting_since IS NULL));
CREATE INDEX documents_waiting ON documents (waiting_since) WHERE waiting_since IS NOT NULL;
ALTER TABLE comparisons
    ADD COLUMN faults integer NOT NULL DEFAULT 0,
    ADD COLUMN losses integer NOT NULL DEFAULT 0,
    ADD COLUMN waits_for text NOT NULL DEFAULT '',
    ADD COLUMN waiting_since timestamptz,
    ADD CONSTRAINT comparisons_wait CHECK ((waits_for = '') = (waiting_since IS NULL));
CREATE INDEX comparisons_waiting ON comparisons (waiting_since) WHERE waiting_since IS NOT NULL;
ALTER TABLE backfills
    ADD COLUMN faults integer NOT NULL DEFAULT 0,
    ADD COLUMN losses integer NOT NULL DEFAULT 0,
    ADD COLUMN waits_for text NOT NULL DEFAULT '',
    ADD COLUMN waiting_since timestamptz,
    ADD CONSTRAINT backfills_wait CHECK ((waits_for = '') = (waiting_since IS NULL));
CREATE INDEX backfills_waiting ON backfills (waiting_since) WHERE waiting_since IS NOT NULL;
ALTER TABLE storage_runs
    ADD COLUMN faults integer NOT NULL DEFAULT 0,
    ADD COLUMN losses integer NOT NULL DEFAULT 0,
    ADD COLUMN waits_for text NOT NULL DEFAULT '',
    ADD COLUMN waiting_since timestamptz,
    ADD CONSTRAINT storage_runs_wait CHECK ((waits_for = '') = (waiting_since IS NULL));
CREATE INDEX storage_runs_waiting ON storage_runs (waiting_since) WHERE waiting_since IS NOT NULL;
ALTER TABLE variants
    ADD COLUMN waits_for text NOT NULL DEFAULT '',
    ADD COLUMN waiting_since timestamptz;

-- For jobs that wait for the same thing, which the first one that gets through wakes.
CREATE INDEX waiting_by_cause ON assets_jobs.procrastinate_jobs ((args ->> 'waits_for'))
    WHERE status = 'todo' AND args ->> 'waits_for' IS NOT NULL;
