-- Jobs say what they wait for, and faults of their own are told from what passes: see shared/background/attempts.py.
ALTER TABLE attempts DROP CONSTRAINT attempts_outcome;
ALTER TABLE attempts ADD CONSTRAINT attempts_outcome
    CHECK (outcome IN ('running', 'succeeded', 'failed', 'retried', 'waited', 'cancelled', 'lost'));

ALTER TABLE conversions
    ADD COLUMN faults integer NOT NULL DEFAULT 0,
    ADD COLUMN losses integer NOT NULL DEFAULT 0,
    ADD COLUMN waits_for text NOT NULL DEFAULT '',
    ADD COLUMN waiting_since timestamptz,
    ADD CONSTRAINT conversions_wait CHECK ((waits_for = '') = (waiting_since IS NULL));
CREATE INDEX conversions_waiting ON conversions (waiting_since) WHERE waiting_since IS NOT NULL;
ALTER TABLE generations
    ADD COLUMN faults integer NOT NULL DEFAULT 0,
    ADD COLUMN losses integer NOT NULL DEFAULT 0,
    ADD COLUMN waits_for text NOT NULL DEFAULT '',
    ADD COLUMN waiting_since timestamptz,
    ADD CONSTRAINT generations_wait CHECK ((waits_for = '') = (waiting_since IS NULL));
CREATE INDEX generations_waiting ON generations (waiting_since) WHERE waiting_since IS NOT NULL;
ALTER TABLE analyses
    ADD COLUMN faults integer NOT NULL DEFAULT 0,
    ADD COLUMN losses integer NOT NULL DEFAULT 0,
    ADD COLUMN waits_for text NOT NULL DEFAULT '',
    ADD COLUMN waiting_since timestamptz,
    ADD CONSTRAINT analyses_wait CHECK ((waits_for = '') = (waiting_since IS NULL));
CREATE INDEX analyses_waiting ON analyses (waiting_since) WHERE waiting_since IS NOT NULL;

-- For jobs that wait for the same thing, which the first one that gets through wakes.
CREATE INDEX waiting_by_cause ON conversions_jobs.procrastinate_jobs ((args ->> 'waits_for'))
    WHERE status = 'todo' AND args ->> 'waits_for' IS NOT NULL;
