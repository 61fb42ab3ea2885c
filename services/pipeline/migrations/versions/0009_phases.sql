-- A phase before this one was run again, and this one not yet.
ALTER TABLE phases ADD COLUMN stale boolean NOT NULL DEFAULT false;

-- Phases that are paused for every owner.
CREATE TABLE phase_pauses (
    phase smallint NOT NULL,
    reason text NOT NULL,
    paused_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    ends_at timestamptz,
    CONSTRAINT phase_pauses_pkey PRIMARY KEY (phase),
    CONSTRAINT phase_pauses_phase CHECK (phase BETWEEN 1 AND 4)
);
ALTER TABLE phase_pauses ENABLE ROW LEVEL SECURITY;
ALTER TABLE phase_pauses FORCE ROW LEVEL SECURITY;
-- The contract lets operators alone pause one.
CREATE POLICY pausing ON phase_pauses TO pipeline_app, pipeline_worker USING (true);

-- Results that others replaced. Rows are only added, by a trigger.
CREATE TABLE past_results (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    owner text NOT NULL,
    product_id uuid NOT NULL,
    phase smallint NOT NULL,
    value jsonb NOT NULL,
    confidence double precision,
    source text NOT NULL,
    provider text NOT NULL,
    made_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    evidence jsonb NOT NULL DEFAULT '[]',
    findings jsonb NOT NULL DEFAULT '[]',
    CONSTRAINT past_results_pkey PRIMARY KEY (id),
    CONSTRAINT past_results_product FOREIGN KEY (owner, product_id) REFERENCES products (owner, id) ON DELETE CASCADE
);
CREATE INDEX past_results_list ON past_results (product_id, phase, created_at DESC, id DESC);
ALTER TABLE past_results ENABLE ROW LEVEL SECURITY;
ALTER TABLE past_results FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON past_results TO pipeline_app, pipeline_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

CREATE FUNCTION keep_past_result() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO pipeline.past_results (owner, product_id, phase, value, confidence, source, provider, made_at, evidence, findings)
        VALUES (OLD.owner, OLD.product_id, OLD.phase, OLD.value, OLD.confidence, OLD.source, OLD.provider, OLD.updated_at,
            OLD.evidence, OLD.findings);
    RETURN NULL;
END $$;
CREATE TRIGGER keep_past_result AFTER UPDATE ON results FOR EACH ROW EXECUTE FUNCTION keep_past_result();
