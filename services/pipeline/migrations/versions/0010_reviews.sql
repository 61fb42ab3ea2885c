-- When a review is due, how many persons decide it, and whether it is a sample.
ALTER TABLE reviews ADD COLUMN due_at timestamptz,
    ADD COLUMN decisions_needed smallint NOT NULL DEFAULT 1,
    ADD COLUMN decisions_made smallint NOT NULL DEFAULT 0,
    ADD COLUMN disputed boolean NOT NULL DEFAULT false,
    ADD COLUMN sample boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT reviews_owner_id UNIQUE (owner, id);
CREATE INDEX reviews_list_phase ON reviews (owner, phase, created_at DESC, id DESC);
-- What NextReview hands out, in its order, and what the metrics count.
CREATE INDEX reviews_next ON reviews (owner, due_at, created_at, id) WHERE state = 'open';
CREATE INDEX reviews_held ON reviews (owner, claimed_by) WHERE state = 'open' AND claimed_by <> '';

-- What each person decided about a review. Rows are only added.
CREATE TABLE review_decisions (
    id uuid NOT NULL,
    owner text NOT NULL,
    review_id uuid NOT NULL,
    decided_by text NOT NULL,
    decision text NOT NULL,
    note text NOT NULL,
    reviewer_value jsonb,
    effective_value jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT review_decisions_pkey PRIMARY KEY (id),
    CONSTRAINT review_decisions_once UNIQUE (review_id, decided_by),
    CONSTRAINT review_decisions_review FOREIGN KEY (owner, review_id) REFERENCES reviews (owner, id) ON DELETE CASCADE,
    CONSTRAINT review_decisions_decision CHECK (decision IN ('approve', 'edit', 'reject', 'send_back')),
    CONSTRAINT review_decisions_effective CHECK ((decision IN ('approve', 'edit')) = (effective_value IS NOT NULL))
);
CREATE INDEX review_decisions_list ON review_decisions (owner, review_id, created_at DESC, id DESC);

-- A narrow row per result with a confidence, so that counting reads no values. It outlives its
-- product. Its id is that of its review, if there is one.
CREATE TABLE rated_results (
    id uuid NOT NULL,
    owner text NOT NULL,
    phase smallint NOT NULL,
    provider text NOT NULL,
    confidence double precision NOT NULL,
    -- Whether the confidence reached the threshold of then, so that only a sample was reviewed.
    confident boolean NOT NULL,
    -- What a person made of it; empty: nobody has decided.
    verdict text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT rated_results_pkey PRIMARY KEY (id),
    CONSTRAINT rated_results_phase CHECK (phase BETWEEN 1 AND 4),
    CONSTRAINT rated_results_verdict CHECK (verdict IN ('', 'right', 'wrong'))
);
CREATE INDEX rated_results_owner ON rated_results (owner, created_at);
CREATE INDEX rated_results_time ON rated_results (created_at);

-- What is kept no longer, by level.
CREATE INDEX logs_kept ON logs (owner, level, created_at);

-- A worker counts the open reviews of all owners for the metrics.
CREATE POLICY counting ON reviews FOR SELECT TO pipeline_worker USING (state = 'open');

ALTER TABLE review_decisions ENABLE ROW LEVEL SECURITY;
ALTER TABLE review_decisions FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON review_decisions TO pipeline_app, pipeline_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE rated_results ENABLE ROW LEVEL SECURITY;
ALTER TABLE rated_results FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rated_results TO pipeline_app, pipeline_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- Admins read the report of all owners.
CREATE POLICY operating ON rated_results FOR SELECT TO pipeline_app
    USING (current_setting('app.operator', true) = 'on');

CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON review_decisions
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON rated_results
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
