-- The look of a brand: words that go into prompts, a logo, and pictures in the owner's order.
CREATE TABLE datasets (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    name text NOT NULL,
    brand text NOT NULL,
    vibe text NOT NULL,
    logo_asset_id uuid,
    image_asset_ids uuid[] NOT NULL,
    archived_at timestamptz,
    -- Set while the dataset is in the trash. After expires_at a worker purges it.
    deleted_at timestamptz,
    expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT datasets_pkey PRIMARY KEY (id),
    CONSTRAINT datasets_owner_id UNIQUE (owner, id),
    CONSTRAINT datasets_trash CHECK ((deleted_at IS NULL) = (expires_at IS NULL))
);
CREATE INDEX datasets_list ON datasets (owner, created_at DESC, id DESC);
CREATE INDEX datasets_list_brand ON datasets (owner, brand, created_at DESC, id DESC) WHERE brand <> '';
CREATE INDEX datasets_expire ON datasets (expires_at) WHERE expires_at IS NOT NULL;

-- Pictures that left a dataset, or whose dataset was purged, one row each time: their references at
-- assets are still to be released. A job releases them and deletes the rows.
CREATE TABLE dataset_releases (
    id uuid NOT NULL,
    owner text NOT NULL,
    dataset_id uuid NOT NULL,
    asset_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT dataset_releases_pkey PRIMARY KEY (dataset_id, id)
);

ALTER TABLE datasets ENABLE ROW LEVEL SECURITY;
ALTER TABLE datasets FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON datasets TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker reads a dataset's owner from its row, and looks for those that expired.
CREATE POLICY claiming ON datasets FOR SELECT TO conversions_worker USING (true);

ALTER TABLE dataset_releases ENABLE ROW LEVEL SECURITY;
ALTER TABLE dataset_releases FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON dataset_releases TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker reads the owner of a purged dataset here.
CREATE POLICY claiming ON dataset_releases FOR SELECT TO conversions_worker USING (true);

ALTER TABLE conversions
    ADD COLUMN recipe_digest text NOT NULL DEFAULT '',
    ADD COLUMN answered_from uuid,
    ADD COLUMN retry_of uuid,
    ADD CONSTRAINT conversions_answered CHECK (answered_from IS NULL OR (state = 'completed' AND credits = 0));
CREATE INDEX conversions_recipe ON conversions (owner, recipe_digest, created_at DESC, id DESC) WHERE state = 'completed' AND answered_from IS NULL AND NOT external;

ALTER TABLE generations
    ADD COLUMN recipe_digest text NOT NULL DEFAULT '',
    ADD COLUMN answered_from uuid,
    ADD COLUMN retry_of uuid,
    ADD COLUMN brand text NOT NULL DEFAULT '',
    ADD COLUMN vibe text NOT NULL DEFAULT '',
    ADD COLUMN logo_asset_id uuid,
    ADD COLUMN dataset_name text NOT NULL DEFAULT '',
    ADD CONSTRAINT generations_answered CHECK (answered_from IS NULL OR (state = 'completed' AND credits = 0));
CREATE INDEX generations_recipe ON generations (owner, recipe_digest, created_at DESC, id DESC) WHERE state = 'completed' AND answered_from IS NULL AND NOT external;

ALTER TABLE analyses
    ADD COLUMN recipe_digest text NOT NULL DEFAULT '',
    ADD COLUMN answered_from uuid,
    ADD COLUMN retry_of uuid,
    ADD CONSTRAINT analyses_answered CHECK (answered_from IS NULL OR (state = 'completed' AND credits = 0));
CREATE INDEX analyses_recipe ON analyses (owner, recipe_digest, created_at DESC, id DESC) WHERE state = 'completed' AND answered_from IS NULL AND NOT external;
CREATE INDEX conversions_list_free ON conversions (owner, free, created_at DESC, id DESC);

-- One narrow row per job, for statistics: triggers write it in the transaction of each change.
CREATE TABLE counted_jobs (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    job text NOT NULL,
    -- Of a conversion 'free' or 'paid', of the others the task.
    type text NOT NULL,
    state text NOT NULL,
    credits bigint NOT NULL,
    processing_time_ms bigint NOT NULL,
    features text[] NOT NULL,
    created_at timestamptz NOT NULL,
    -- Of generations. The prompt's first 200 characters in lower case, with single spaces; the dataset
    -- only if it is one of DatasetService. Both are forgotten when the job is deleted.
    prompt text NOT NULL DEFAULT '',
    dataset_id text NOT NULL DEFAULT '',
    dataset_name text NOT NULL DEFAULT '',
    style text NOT NULL DEFAULT '',
    aspect_ratio text NOT NULL DEFAULT '',
    quality text NOT NULL DEFAULT '',
    format text NOT NULL DEFAULT '',
    resolution text NOT NULL DEFAULT '',
    CONSTRAINT counted_jobs_pkey PRIMARY KEY (id),
    CONSTRAINT counted_jobs_job CHECK (job IN ('conversions', 'generations', 'analyses'))
);
CREATE INDEX counted_jobs_owner ON counted_jobs (owner, created_at);
CREATE INDEX counted_jobs_created ON counted_jobs (created_at);

ALTER TABLE counted_jobs ENABLE ROW LEVEL SECURITY;
ALTER TABLE counted_jobs FORCE ROW LEVEL SECURITY;
-- The settings are read once per statement and not once per row, of which there may be millions.
CREATE POLICY tenant ON counted_jobs TO conversions_app, conversions_worker
    USING (owner = (SELECT NULLIF(current_setting('app.owner_id', true), '')));
-- An operator reads figures across owners in transactions that set app.operator.
CREATE POLICY operating ON counted_jobs FOR SELECT TO conversions_app USING ((SELECT current_setting('app.operator', true) = 'on'));

-- Returns the words whose conditions are true.
CREATE FUNCTION features_used(words text[], used boolean[]) RETURNS text[] LANGUAGE sql IMMUTABLE
RETURN ARRAY(SELECT word FROM unnest(words, used) AS each (word, is_used) WHERE is_used);

CREATE FUNCTION count_conversion() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO conversions.counted_jobs (id, owner, created_by, job, type, state, credits, processing_time_ms, features, created_at)
    VALUES (NEW.id, NEW.owner, NEW.created_by, 'conversions', CASE WHEN NEW.free THEN 'free' ELSE 'paid' END, NEW.state,
        NEW.credits, NEW.processing_time_ms,
        conversions.features_used(ARRAY['style', 'retried', 'reused', 'outside_worker', 'product'],
            ARRAY[NEW.style_name <> '', NEW.retry_of IS NOT NULL, NEW.answered_from IS NOT NULL, NEW.external,
                NEW.product_id <> '']),
        NEW.created_at);
    RETURN NULL;
END $$;
CREATE TRIGGER count_job AFTER INSERT ON conversions FOR EACH ROW EXECUTE FUNCTION count_conversion();

CREATE FUNCTION count_generation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO conversions.counted_jobs (id, owner, created_by, job, type, state, credits, processing_time_ms, features,
        created_at, prompt, dataset_id, dataset_name, style, aspect_ratio, quality, format, resolution)
    VALUES (NEW.id, NEW.owner, NEW.created_by, 'generations', NEW.task, NEW.state, NEW.credits, NEW.processing_time_ms,
        conversions.features_used(
            ARRAY['references', 'dataset', 'logo', 'style', 'seed', 'regenerated', 'retried', 'reused', 'outside_worker',
                'product'],
            ARRAY[cardinality(NEW.reference_asset_ids) > 0, NEW.dataset_name <> '', NEW.logo_asset_id IS NOT NULL,
                NEW.style <> '', NEW.seed IS NOT NULL, NEW.regenerated_from IS NOT NULL, NEW.retry_of IS NOT NULL,
                NEW.answered_from IS NOT NULL, NEW.external, NEW.product_id <> '']),
        NEW.created_at, left(lower(btrim(regexp_replace(NEW.prompt, '\s+', ' ', 'g'))), 200),
        CASE WHEN NEW.dataset_name <> '' THEN NEW.dataset_id ELSE '' END, NEW.dataset_name,
        NEW.style, NEW.aspect_ratio, NEW.quality, NEW.format, NEW.resolution);
    RETURN NULL;
END $$;
CREATE TRIGGER count_job AFTER INSERT ON generations FOR EACH ROW EXECUTE FUNCTION count_generation();

CREATE FUNCTION count_analysis() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO conversions.counted_jobs (id, owner, created_by, job, type, state, credits, processing_time_ms, features, created_at)
    VALUES (NEW.id, NEW.owner, NEW.created_by, 'analyses', NEW.task, NEW.state, NEW.credits, NEW.processing_time_ms,
        conversions.features_used(ARRAY['facts', 'retried', 'reused', 'outside_worker', 'product'],
            ARRAY[NEW.facts <> '{}', NEW.retry_of IS NOT NULL, NEW.answered_from IS NOT NULL, NEW.external,
                NEW.product_id <> '']),
        NEW.created_at);
    RETURN NULL;
END $$;
CREATE TRIGGER count_job AFTER INSERT ON analyses FOR EACH ROW EXECUTE FUNCTION count_analysis();

CREATE FUNCTION recount_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE conversions.counted_jobs SET state = NEW.state, credits = NEW.credits, processing_time_ms = NEW.processing_time_ms
    WHERE id = NEW.id;
    RETURN NULL;
END $$;
-- A job that was deleted still counts; what it said is forgotten.
CREATE FUNCTION forget_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE conversions.counted_jobs SET prompt = '', dataset_name = '', style = '' WHERE id = OLD.id;
    RETURN NULL;
END $$;
CREATE TRIGGER recount_job AFTER UPDATE ON conversions FOR EACH ROW
    WHEN ((OLD.state, OLD.credits, OLD.processing_time_ms) IS DISTINCT FROM (NEW.state, NEW.credits, NEW.processing_time_ms))
    EXECUTE FUNCTION recount_job();
CREATE TRIGGER forget_job AFTER DELETE ON conversions FOR EACH ROW EXECUTE FUNCTION forget_job();
CREATE TRIGGER recount_job AFTER UPDATE ON generations FOR EACH ROW
    WHEN ((OLD.state, OLD.credits, OLD.processing_time_ms) IS DISTINCT FROM (NEW.state, NEW.credits, NEW.processing_time_ms))
    EXECUTE FUNCTION recount_job();
CREATE TRIGGER forget_job AFTER DELETE ON generations FOR EACH ROW EXECUTE FUNCTION forget_job();
CREATE TRIGGER recount_job AFTER UPDATE ON analyses FOR EACH ROW
    WHEN ((OLD.state, OLD.credits, OLD.processing_time_ms) IS DISTINCT FROM (NEW.state, NEW.credits, NEW.processing_time_ms))
    EXECUTE FUNCTION recount_job();
CREATE TRIGGER forget_job AFTER DELETE ON analyses FOR EACH ROW EXECUTE FUNCTION forget_job();
