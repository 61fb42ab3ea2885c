-- Jobs can be archived, deleted, undeleted and purged, and are kept as long as settings say.

ALTER TABLE conversions
    ADD COLUMN archived_at timestamptz,
    ADD COLUMN deleted_at timestamptz,
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN ended_at timestamptz,
    ADD COLUMN kept_from timestamptz,
    ADD COLUMN drop_inputs boolean NOT NULL DEFAULT false,
    ADD COLUMN inputs_dropped_at timestamptz,
    ADD CONSTRAINT conversions_trash CHECK ((deleted_at IS NULL) = (expires_at IS NULL) AND (deleted_at IS NULL OR state IN ('completed', 'failed', 'cancelled')));
CREATE INDEX conversions_expire ON conversions (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX conversions_retained ON conversions (state, coalesce(kept_from, updated_at)) WHERE deleted_at IS NULL AND state IN ('completed', 'failed', 'cancelled');
CREATE INDEX conversions_inputs ON conversions (coalesce(kept_from, updated_at)) WHERE deleted_at IS NULL AND state = 'completed' AND NOT drop_inputs;

ALTER TABLE generations
    ADD COLUMN archived_at timestamptz,
    ADD COLUMN deleted_at timestamptz,
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN ended_at timestamptz,
    ADD COLUMN kept_from timestamptz,
    ADD COLUMN drop_inputs boolean NOT NULL DEFAULT false,
    ADD COLUMN inputs_dropped_at timestamptz,
    ADD CONSTRAINT generations_trash CHECK ((deleted_at IS NULL) = (expires_at IS NULL) AND (deleted_at IS NULL OR state IN ('completed', 'failed', 'cancelled')));
CREATE INDEX generations_expire ON generations (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX generations_retained ON generations (state, coalesce(kept_from, updated_at)) WHERE deleted_at IS NULL AND state IN ('completed', 'failed', 'cancelled');

ALTER TABLE analyses
    ADD COLUMN archived_at timestamptz,
    ADD COLUMN deleted_at timestamptz,
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN ended_at timestamptz,
    ADD COLUMN kept_from timestamptz,
    ADD COLUMN drop_inputs boolean NOT NULL DEFAULT false,
    ADD COLUMN inputs_dropped_at timestamptz,
    ADD CONSTRAINT analyses_trash CHECK ((deleted_at IS NULL) = (expires_at IS NULL) AND (deleted_at IS NULL OR state IN ('completed', 'failed', 'cancelled')));
CREATE INDEX analyses_expire ON analyses (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX analyses_retained ON analyses (state, coalesce(kept_from, updated_at)) WHERE deleted_at IS NULL AND state IN ('completed', 'failed', 'cancelled');

-- When a job ends, however it does, its time is noted: later changes move updated_at on.
CREATE FUNCTION note_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.ended_at := now();
    NEW.kept_from := now();
    RETURN NEW;
END $$;
CREATE TRIGGER note_end BEFORE INSERT OR UPDATE OF state ON conversions FOR EACH ROW
    WHEN (NEW.state IN ('completed', 'failed', 'cancelled') AND NEW.ended_at IS NULL) EXECUTE FUNCTION note_end();
CREATE TRIGGER note_end BEFORE INSERT OR UPDATE OF state ON generations FOR EACH ROW
    WHEN (NEW.state IN ('completed', 'failed', 'cancelled') AND NEW.ended_at IS NULL) EXECUTE FUNCTION note_end();
CREATE TRIGGER note_end BEFORE INSERT OR UPDATE OF state ON analyses FOR EACH ROW
    WHEN (NEW.state IN ('completed', 'failed', 'cancelled') AND NEW.ended_at IS NULL) EXECUTE FUNCTION note_end();

-- Jobs that were purged, until a worker has released their references and settled their pictures.
CREATE TABLE purged_jobs (
    job_id uuid NOT NULL,
    owner text NOT NULL,
    job text NOT NULL,
    -- The picture that the job had made; NULL: none.
    result_asset_id uuid,
    -- True: the job was in the trash, so its picture is purged only if it is there, too.
    from_trash boolean NOT NULL,
    -- The inputs that it was still to drop.
    drop_asset_ids uuid[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT purged_jobs_pkey PRIMARY KEY (job_id),
    CONSTRAINT purged_jobs_job CHECK (job IN ('conversions', 'generations', 'analyses'))
);

-- Of a purged job that had made a picture: what revoking a consent and disclosing the picture's origin
-- still need. Pictures may be left that were made of this one, so a row stays until its owner is erased,
-- and so do the job's rows in job_inputs.
CREATE TABLE purged_makers (
    owner text NOT NULL,
    job_id uuid NOT NULL,
    job text NOT NULL,
    result_asset_id uuid NOT NULL,
    -- True: another job had made the picture, and answered this one with it.
    answered boolean NOT NULL,
    consent_ids uuid[] NOT NULL,
    created_at timestamptz NOT NULL,
    purged_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT purged_makers_pkey PRIMARY KEY (owner, job_id),
    CONSTRAINT purged_makers_job CHECK (job IN ('conversions', 'generations'))
);
CREATE INDEX purged_makers_result ON purged_makers (owner, result_asset_id);

-- Pictures that this service put into the trash of assets, because every job that they are the result
-- of is in the trash. They come back with the first of these jobs.
CREATE TABLE deleted_results (
    owner text NOT NULL,
    asset_id uuid NOT NULL,
    CONSTRAINT deleted_results_pkey PRIMARY KEY (owner, asset_id)
);

ALTER TABLE purged_jobs ENABLE ROW LEVEL SECURITY;
ALTER TABLE purged_jobs FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON purged_jobs TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker reads the owner of a purged job here.
CREATE POLICY claiming ON purged_jobs FOR SELECT TO conversions_worker USING (true);

ALTER TABLE purged_makers ENABLE ROW LEVEL SECURITY;
ALTER TABLE purged_makers FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON purged_makers TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE deleted_results ENABLE ROW LEVEL SECURITY;
ALTER TABLE deleted_results FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON deleted_results TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

-- What retention did on each UTC day, over all owners; it holds nothing of any.
CREATE TABLE retention_counts (
    day date NOT NULL,
    class text NOT NULL,
    done bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT retention_counts_pkey PRIMARY KEY (day, class),
    CONSTRAINT retention_counts_class CHECK (class IN ('failed', 'conversions', 'generations', 'analyses', 'inputs', 'calls', 'purged'))
);

ALTER TABLE retention_counts ENABLE ROW LEVEL SECURITY;
ALTER TABLE retention_counts FORCE ROW LEVEL SECURITY;
-- The contract lets operators alone read them; a worker counts in the transaction of each step.
CREATE POLICY reading ON retention_counts FOR SELECT TO conversions_app USING (true);
CREATE POLICY counting ON retention_counts TO conversions_worker USING (true);

CREATE INDEX provider_calls_texts ON provider_calls (ended_at) WHERE ended_at IS NOT NULL AND (handle <> '' OR category <> '');
-- A worker looks for calls whose texts are to be forgotten.
CREATE POLICY claiming ON provider_calls FOR SELECT TO conversions_worker USING (true);
