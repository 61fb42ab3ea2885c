-- Pictures know the jobs that they went into.

-- Which pictures went into which job, written by triggers: arrays and JSON in the jobs' rows can't be
-- searched by an index under row-level security. The roles are those of `ModelJob.inputs`.
CREATE TABLE job_inputs (
    owner text NOT NULL,
    job_id uuid NOT NULL,
    position integer NOT NULL,
    job text NOT NULL,
    asset_id uuid NOT NULL,
    role text NOT NULL,
    CONSTRAINT job_inputs_pkey PRIMARY KEY (owner, job_id, position)
);
CREATE INDEX job_inputs_asset ON job_inputs (owner, asset_id);
CREATE INDEX conversions_result ON conversions (owner, result_asset_id) WHERE result_asset_id IS NOT NULL;
CREATE INDEX generations_result ON generations (owner, result_asset_id) WHERE result_asset_id IS NOT NULL;
CREATE INDEX generations_regenerated ON generations (owner, regenerated_from) WHERE regenerated_from IS NOT NULL;
CREATE INDEX conversions_answered ON conversions (owner, answered_from) WHERE answered_from IS NOT NULL;
CREATE INDEX generations_answered ON generations (owner, answered_from) WHERE answered_from IS NOT NULL;
CREATE INDEX analyses_answered ON analyses (owner, answered_from) WHERE answered_from IS NOT NULL;
CREATE INDEX conversions_retried ON conversions (owner, retry_of) WHERE retry_of IS NOT NULL;
CREATE INDEX generations_retried ON generations (owner, retry_of) WHERE retry_of IS NOT NULL;
CREATE INDEX analyses_retried ON analyses (owner, retry_of) WHERE retry_of IS NOT NULL;

CREATE FUNCTION note_conversion_inputs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO conversions.job_inputs (owner, job_id, position, job, asset_id, role)
    VALUES (NEW.owner, NEW.id, 1, 'conversions', NEW.user_asset_id, 'user'),
        (NEW.owner, NEW.id, 2, 'conversions', NEW.cloth_asset_id, 'cloth');
    RETURN NULL;
END $$;
CREATE TRIGGER note_inputs AFTER INSERT ON conversions
    FOR EACH ROW EXECUTE FUNCTION note_conversion_inputs();

CREATE FUNCTION note_generation_inputs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO conversions.job_inputs (owner, job_id, position, job, asset_id, role)
    SELECT NEW.owner, NEW.id, n, 'generations', asset_id, 'reference'
    FROM unnest(NEW.reference_asset_ids) WITH ORDINALITY AS each (asset_id, n);
    IF NEW.logo_asset_id IS NOT NULL THEN
        INSERT INTO conversions.job_inputs (owner, job_id, position, job, asset_id, role)
        VALUES (NEW.owner, NEW.id, cardinality(NEW.reference_asset_ids) + 1, 'generations', NEW.logo_asset_id,
            'logo');
    END IF;
    IF NEW.source_asset_id IS NOT NULL THEN
        INSERT INTO conversions.job_inputs (owner, job_id, position, job, asset_id, role)
        VALUES (NEW.owner, NEW.id, cardinality(NEW.reference_asset_ids) + 2, 'generations', NEW.source_asset_id,
            'source');
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER note_inputs AFTER INSERT ON generations
    FOR EACH ROW EXECUTE FUNCTION note_generation_inputs();

CREATE FUNCTION note_analysis_inputs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO conversions.job_inputs (owner, job_id, position, job, asset_id, role)
    SELECT NEW.owner, NEW.id, n, 'analyses', (image ->> 'asset_id')::uuid,
        COALESCE(NULLIF(image ->> 'view', ''), 'picture ' || n)
    FROM jsonb_array_elements(NEW.images) WITH ORDINALITY AS each (image, n);
    RETURN NULL;
END $$;
CREATE TRIGGER note_inputs AFTER INSERT ON analyses
    FOR EACH ROW EXECUTE FUNCTION note_analysis_inputs();

ALTER TABLE job_inputs ENABLE ROW LEVEL SECURITY;
ALTER TABLE job_inputs FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON job_inputs TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

-- The next revisions read and fill these as the owner of the tables, whom the policies bind too.
CREATE POLICY filling ON conversions FOR SELECT TO conversions_owner USING (true);
CREATE POLICY filling ON generations FOR SELECT TO conversions_owner USING (true);
CREATE POLICY filling ON analyses FOR SELECT TO conversions_owner USING (true);
CREATE POLICY filling ON counted_jobs TO conversions_owner USING (true);
CREATE POLICY filling ON job_inputs TO conversions_owner USING (true);
