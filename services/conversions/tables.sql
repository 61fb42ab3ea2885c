-- The schema of `conversions`, with its policies. Common tables (requests, events, event_stream,
-- attempts) are in shared/database/tables.sql. A migration changes both this file and the database;
-- a test compares them.
--
-- Each row of the three nouns is its own job: the columns from `state` on are the same for all.
-- `external`: an outside worker runs it, and the service's queue has no job for it.

-- A try-on of a garment on a person.
CREATE TABLE conversions (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    user_asset_id uuid NOT NULL,
    cloth_asset_id uuid NOT NULL,
    result_asset_id uuid,
    style_name text NOT NULL,
    metadata jsonb NOT NULL,
    product_id text NOT NULL,
    free boolean NOT NULL,
    state text NOT NULL DEFAULT 'pending',
    version bigint NOT NULL DEFAULT 1,
    attempt_token uuid,
    attempt_number integer NOT NULL DEFAULT 0,
    cancel_requested boolean NOT NULL DEFAULT false,
    progress double precision NOT NULL DEFAULT 0,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    confidence double precision NOT NULL DEFAULT 0,
    evidence jsonb NOT NULL DEFAULT '[]',
    recipe jsonb,
    credits bigint NOT NULL DEFAULT 0,
    processing_time_ms bigint NOT NULL DEFAULT 0,
    priority smallint NOT NULL,
    external boolean NOT NULL,
    lease_expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Attempts that failed through the job itself, and attempts whose worker vanished. A success
    -- sets both to 0.
    faults integer NOT NULL DEFAULT 0,
    losses integer NOT NULL DEFAULT 0,
    -- What the job waits for because it is away or has no room, and since when; see
    -- shared/background/attempts.py.
    waits_for text NOT NULL DEFAULT '',
    waiting_since timestamptz,
    -- The provider that the caller asked for; empty: none in particular.
    provider text NOT NULL DEFAULT '',
    -- What decides whether an earlier result can answer: a digest of what goes into the model. Empty:
    -- of a row that was created before this was noted.
    recipe_digest text NOT NULL DEFAULT '',
    -- The row whose result answers this one, and the failed or cancelled row that this one retries.
    answered_from uuid,
    retry_of uuid,
    -- What is set aside for the job until it has ended.
    credits_reserved bigint NOT NULL DEFAULT 0,
    -- The most that the request lets it cost; NULL: no limit.
    max_credits bigint,
    -- The consents that the job rests on; empty if none was required.
    consent_ids uuid[] NOT NULL DEFAULT '{}',
    -- The batch that the row belongs to, and the number of its item that the row is, from 0; the number
    -- is NULL once another row tries the item again.
    batch_id uuid,
    batch_item integer,
    -- Archived rows are hidden from lists. A deleted one is in the trash; after expires_at a worker
    -- purges it.
    archived_at timestamptz,
    deleted_at timestamptz,
    expires_at timestamptz,
    -- When the job ended; a trigger writes it. NULL of a row that ended before there was this column and
    -- hasn't changed since: updated_at is its end.
    ended_at timestamptz,
    -- From when retention counts: since the job ended, or was last undeleted. NULL: as ended_at.
    kept_from timestamptz,
    -- True: once the job is completed, its references to its inputs are released, and photographs among
    -- them are deleted; `inputs_dropped_at` says when that was done.
    drop_inputs boolean NOT NULL DEFAULT false,
    inputs_dropped_at timestamptz,
    -- When an operator last requeued the job after it had failed, and after how many attempts; only
    -- those since then count.
    requeued_at timestamptz,
    requeued_after integer NOT NULL DEFAULT 0,
    CONSTRAINT conversions_pkey PRIMARY KEY (id),
    CONSTRAINT conversions_state CHECK (state IN ('pending', 'processing', 'completed', 'failed', 'cancelled')),
    -- A completed row has a result and a recipe.
    CONSTRAINT conversions_completed_has_result CHECK (state <> 'completed' OR (result_asset_id IS NOT NULL AND recipe IS NOT NULL)),
    CONSTRAINT conversions_confidence CHECK (confidence BETWEEN 0 AND 1),
    CONSTRAINT conversions_progress CHECK (progress BETWEEN 0 AND 1),
    -- Only a completed row may cost credits.
    CONSTRAINT conversions_credits CHECK (credits = 0 OR (credits > 0 AND state = 'completed')),
    -- A row that is answered from another one was made by nobody.
    CONSTRAINT conversions_answered CHECK (answered_from IS NULL OR (state = 'completed' AND credits = 0)),
    -- Only a job that hasn't ended has credits set aside.
    CONSTRAINT conversions_reserved CHECK (credits_reserved = 0 OR (credits_reserved > 0 AND state IN ('pending', 'processing'))),
    CONSTRAINT conversions_failed_has_reason CHECK (state <> 'failed' OR error_class <> ''),
    CONSTRAINT conversions_priority CHECK (priority BETWEEN 0 AND 9),
    -- A row has a lease exactly while an outside worker has claimed it.
    CONSTRAINT conversions_lease CHECK ((external AND state = 'processing') = (lease_expires_at IS NOT NULL)),
    CONSTRAINT conversions_wait CHECK ((waits_for = '') = (waiting_since IS NULL)),
    -- Only what has ended is in the trash.
    CONSTRAINT conversions_trash CHECK ((deleted_at IS NULL) = (expires_at IS NULL) AND (deleted_at IS NULL OR state IN ('completed', 'failed', 'cancelled')))
);
CREATE INDEX conversions_expire ON conversions (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX conversions_retained ON conversions (state, coalesce(kept_from, updated_at)) WHERE deleted_at IS NULL AND state IN ('completed', 'failed', 'cancelled');
CREATE INDEX conversions_inputs ON conversions (coalesce(kept_from, updated_at)) WHERE deleted_at IS NULL AND state = 'completed' AND NOT drop_inputs;
CREATE INDEX conversions_waiting ON conversions (waiting_since) WHERE waiting_since IS NOT NULL;
CREATE INDEX conversions_recipe ON conversions (owner, recipe_digest, created_at DESC, id DESC) WHERE state = 'completed' AND answered_from IS NULL AND NOT external;
CREATE INDEX conversions_list ON conversions (owner, created_at DESC, id DESC);
CREATE INDEX conversions_list_state ON conversions (owner, state, created_at DESC, id DESC);
CREATE INDEX conversions_list_free ON conversions (owner, free, created_at DESC, id DESC);
CREATE INDEX conversions_list_product ON conversions (owner, product_id, created_at DESC, id DESC) WHERE product_id <> '';
-- The rows that outside workers may claim, in the order of claims: waiting rows, and rows whose
-- lease may have passed.
CREATE INDEX conversions_claim ON conversions (owner, priority DESC, created_at, id) WHERE external AND state IN ('pending', 'processing');
CREATE INDEX conversions_leases ON conversions (lease_expires_at) WHERE lease_expires_at IS NOT NULL;

-- A picture made from a prompt, or from a photograph.
CREATE TABLE generations (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    task text NOT NULL,
    prompt text NOT NULL,
    full_prompt text NOT NULL DEFAULT '',
    style text NOT NULL,
    aspect_ratio text NOT NULL,
    quality text NOT NULL,
    format text NOT NULL,
    resolution text NOT NULL,
    seed bigint,
    reference_asset_ids uuid[] NOT NULL,
    unique_visual_elements text[] NOT NULL DEFAULT '{}',
    source_asset_id uuid,
    view text NOT NULL,
    at_x double precision,
    at_y double precision,
    name text NOT NULL,
    product_id text NOT NULL,
    dataset_id text NOT NULL,
    regenerated_from uuid,
    result_asset_id uuid,
    state text NOT NULL DEFAULT 'pending',
    version bigint NOT NULL DEFAULT 1,
    attempt_token uuid,
    attempt_number integer NOT NULL DEFAULT 0,
    cancel_requested boolean NOT NULL DEFAULT false,
    progress double precision NOT NULL DEFAULT 0,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    confidence double precision NOT NULL DEFAULT 0,
    evidence jsonb NOT NULL DEFAULT '[]',
    recipe jsonb,
    credits bigint NOT NULL DEFAULT 0,
    processing_time_ms bigint NOT NULL DEFAULT 0,
    priority smallint NOT NULL,
    external boolean NOT NULL,
    lease_expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Attempts that failed through the job itself, and attempts whose worker vanished. A success
    -- sets both to 0.
    faults integer NOT NULL DEFAULT 0,
    losses integer NOT NULL DEFAULT 0,
    -- What the job waits for because it is away or has no room, and since when; see
    -- shared/background/attempts.py.
    waits_for text NOT NULL DEFAULT '',
    waiting_since timestamptz,
    -- The provider that the caller asked for; empty: none in particular.
    provider text NOT NULL DEFAULT '',
    -- What decides whether an earlier result can answer: a digest of what goes into the model. Empty:
    -- of a row that was created before this was noted.
    recipe_digest text NOT NULL DEFAULT '',
    -- The row whose result answers this one, and the failed or cancelled row that this one retries.
    answered_from uuid,
    retry_of uuid,
    -- What was taken from the dataset, as it was then.
    brand text NOT NULL DEFAULT '',
    vibe text NOT NULL DEFAULT '',
    logo_asset_id uuid,
    dataset_name text NOT NULL DEFAULT '',
    -- What is set aside for the job until it has ended.
    credits_reserved bigint NOT NULL DEFAULT 0,
    -- The most that the request lets it cost; NULL: no limit.
    max_credits bigint,
    -- The consents that the job rests on; empty if none was required.
    consent_ids uuid[] NOT NULL DEFAULT '{}',
    -- The batch that the row belongs to, and the number of its item that the row is, from 0; the number
    -- is NULL once another row tries the item again.
    batch_id uuid,
    batch_item integer,
    -- Archived rows are hidden from lists. A deleted one is in the trash; after expires_at a worker
    -- purges it.
    archived_at timestamptz,
    deleted_at timestamptz,
    expires_at timestamptz,
    -- When the job ended; a trigger writes it. NULL of a row that ended before there was this column and
    -- hasn't changed since: updated_at is its end.
    ended_at timestamptz,
    -- From when retention counts: since the job ended, or was last undeleted. NULL: as ended_at.
    kept_from timestamptz,
    -- True: once the job is completed, its references to its inputs are released, and photographs among
    -- them are deleted; `inputs_dropped_at` says when that was done.
    drop_inputs boolean NOT NULL DEFAULT false,
    inputs_dropped_at timestamptz,
    -- When an operator last requeued the job after it had failed, and after how many attempts; only
    -- those since then count.
    requeued_at timestamptz,
    requeued_after integer NOT NULL DEFAULT 0,
    CONSTRAINT generations_pkey PRIMARY KEY (id),
    CONSTRAINT generations_state CHECK (state IN ('pending', 'processing', 'completed', 'failed', 'cancelled')),
    CONSTRAINT generations_task CHECK (task IN ('image', 'closeup', 'sketch')),
    -- An image is made from references, a close-up or a sketch from one source.
    CONSTRAINT generations_source CHECK ((task = 'image') = (source_asset_id IS NULL)),
    -- A completed row has a result and a recipe.
    CONSTRAINT generations_completed_has_result CHECK (state <> 'completed' OR (result_asset_id IS NOT NULL AND recipe IS NOT NULL)),
    CONSTRAINT generations_confidence CHECK (confidence BETWEEN 0 AND 1),
    CONSTRAINT generations_progress CHECK (progress BETWEEN 0 AND 1),
    -- Only a completed row may cost credits.
    CONSTRAINT generations_credits CHECK (credits = 0 OR (credits > 0 AND state = 'completed')),
    -- A row that is answered from another one was made by nobody.
    CONSTRAINT generations_answered CHECK (answered_from IS NULL OR (state = 'completed' AND credits = 0)),
    -- Only a job that hasn't ended has credits set aside.
    CONSTRAINT generations_reserved CHECK (credits_reserved = 0 OR (credits_reserved > 0 AND state IN ('pending', 'processing'))),
    CONSTRAINT generations_failed_has_reason CHECK (state <> 'failed' OR error_class <> ''),
    CONSTRAINT generations_priority CHECK (priority BETWEEN 0 AND 9),
    -- A row has a lease exactly while an outside worker has claimed it.
    CONSTRAINT generations_lease CHECK ((external AND state = 'processing') = (lease_expires_at IS NOT NULL)),
    CONSTRAINT generations_wait CHECK ((waits_for = '') = (waiting_since IS NULL)),
    -- Only what has ended is in the trash.
    CONSTRAINT generations_trash CHECK ((deleted_at IS NULL) = (expires_at IS NULL) AND (deleted_at IS NULL OR state IN ('completed', 'failed', 'cancelled')))
);
CREATE INDEX generations_expire ON generations (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX generations_retained ON generations (state, coalesce(kept_from, updated_at)) WHERE deleted_at IS NULL AND state IN ('completed', 'failed', 'cancelled');
CREATE INDEX generations_waiting ON generations (waiting_since) WHERE waiting_since IS NOT NULL;
CREATE INDEX generations_recipe ON generations (owner, recipe_digest, created_at DESC, id DESC) WHERE state = 'completed' AND answered_from IS NULL AND NOT external;
CREATE INDEX generations_list ON generations (owner, created_at DESC, id DESC);
CREATE INDEX generations_list_state ON generations (owner, state, created_at DESC, id DESC);
CREATE INDEX generations_list_product ON generations (owner, product_id, created_at DESC, id DESC) WHERE product_id <> '';
CREATE INDEX generations_list_dataset ON generations (owner, dataset_id, created_at DESC, id DESC) WHERE dataset_id <> '';
-- The rows that outside workers may claim, in the order of claims: waiting rows, and rows whose
-- lease may have passed.
CREATE INDEX generations_claim ON generations (owner, priority DESC, created_at, id) WHERE external AND state IN ('pending', 'processing');
CREATE INDEX generations_leases ON generations (lease_expires_at) WHERE lease_expires_at IS NOT NULL;

-- Facts that a named task found in pictures and stated facts. `images` is a list of {asset_id,
-- view}.
CREATE TABLE analyses (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    task text NOT NULL,
    images jsonb NOT NULL,
    facts jsonb NOT NULL,
    product_id text NOT NULL,
    result jsonb,
    state text NOT NULL DEFAULT 'pending',
    version bigint NOT NULL DEFAULT 1,
    attempt_token uuid,
    attempt_number integer NOT NULL DEFAULT 0,
    cancel_requested boolean NOT NULL DEFAULT false,
    progress double precision NOT NULL DEFAULT 0,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    confidence double precision NOT NULL DEFAULT 0,
    evidence jsonb NOT NULL DEFAULT '[]',
    recipe jsonb,
    credits bigint NOT NULL DEFAULT 0,
    processing_time_ms bigint NOT NULL DEFAULT 0,
    priority smallint NOT NULL,
    external boolean NOT NULL,
    lease_expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Attempts that failed through the job itself, and attempts whose worker vanished. A success
    -- sets both to 0.
    faults integer NOT NULL DEFAULT 0,
    losses integer NOT NULL DEFAULT 0,
    -- What the job waits for because it is away or has no room, and since when; see
    -- shared/background/attempts.py.
    waits_for text NOT NULL DEFAULT '',
    waiting_since timestamptz,
    -- The provider that the caller asked for; empty: none in particular.
    provider text NOT NULL DEFAULT '',
    -- Every value with its source; see services/conversions/merging.py.
    findings jsonb NOT NULL DEFAULT '[]',
    -- What decides whether an earlier result can answer: a digest of what goes into the model. Empty:
    -- of a row that was created before this was noted.
    recipe_digest text NOT NULL DEFAULT '',
    -- The row whose result answers this one, and the failed or cancelled row that this one retries.
    answered_from uuid,
    retry_of uuid,
    -- What is set aside for the job until it has ended.
    credits_reserved bigint NOT NULL DEFAULT 0,
    -- The most that the request lets it cost; NULL: no limit.
    max_credits bigint,
    -- The consents that the job rests on; empty if none was required.
    consent_ids uuid[] NOT NULL DEFAULT '{}',
    -- Archived rows are hidden from lists. A deleted one is in the trash; after expires_at a worker
    -- purges it.
    archived_at timestamptz,
    deleted_at timestamptz,
    expires_at timestamptz,
    -- When the job ended; a trigger writes it. NULL of a row that ended before there was this column and
    -- hasn't changed since: updated_at is its end.
    ended_at timestamptz,
    -- From when retention counts: since the job ended, or was last undeleted. NULL: as ended_at.
    kept_from timestamptz,
    -- True: once the job is completed, its references to its inputs are released, and photographs among
    -- them are deleted; `inputs_dropped_at` says when that was done.
    drop_inputs boolean NOT NULL DEFAULT false,
    inputs_dropped_at timestamptz,
    -- When an operator last requeued the job after it had failed, and after how many attempts; only
    -- those since then count.
    requeued_at timestamptz,
    requeued_after integer NOT NULL DEFAULT 0,
    CONSTRAINT analyses_pkey PRIMARY KEY (id),
    CONSTRAINT analyses_state CHECK (state IN ('pending', 'processing', 'completed', 'failed', 'cancelled')),
    CONSTRAINT analyses_task CHECK (task IN ('product', 'base_view', 'category', 'sketch', 'seo', 'listing')),
    -- A completed row has a result and a recipe.
    CONSTRAINT analyses_completed_has_result CHECK (state <> 'completed' OR (result IS NOT NULL AND recipe IS NOT NULL)),
    CONSTRAINT analyses_confidence CHECK (confidence BETWEEN 0 AND 1),
    CONSTRAINT analyses_progress CHECK (progress BETWEEN 0 AND 1),
    -- Only a completed row may cost credits.
    CONSTRAINT analyses_credits CHECK (credits = 0 OR (credits > 0 AND state = 'completed')),
    -- A row that is answered from another one was made by nobody.
    CONSTRAINT analyses_answered CHECK (answered_from IS NULL OR (state = 'completed' AND credits = 0)),
    -- Only a job that hasn't ended has credits set aside.
    CONSTRAINT analyses_reserved CHECK (credits_reserved = 0 OR (credits_reserved > 0 AND state IN ('pending', 'processing'))),
    CONSTRAINT analyses_failed_has_reason CHECK (state <> 'failed' OR error_class <> ''),
    CONSTRAINT analyses_priority CHECK (priority BETWEEN 0 AND 9),
    -- A row has a lease exactly while an outside worker has claimed it.
    CONSTRAINT analyses_lease CHECK ((external AND state = 'processing') = (lease_expires_at IS NOT NULL)),
    CONSTRAINT analyses_wait CHECK ((waits_for = '') = (waiting_since IS NULL)),
    -- Only what has ended is in the trash.
    CONSTRAINT analyses_trash CHECK ((deleted_at IS NULL) = (expires_at IS NULL) AND (deleted_at IS NULL OR state IN ('completed', 'failed', 'cancelled')))
);
CREATE INDEX analyses_expire ON analyses (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX analyses_retained ON analyses (state, coalesce(kept_from, updated_at)) WHERE deleted_at IS NULL AND state IN ('completed', 'failed', 'cancelled');
CREATE INDEX analyses_waiting ON analyses (waiting_since) WHERE waiting_since IS NOT NULL;
CREATE INDEX analyses_recipe ON analyses (owner, recipe_digest, created_at DESC, id DESC) WHERE state = 'completed' AND answered_from IS NULL AND NOT external;
CREATE INDEX analyses_list ON analyses (owner, created_at DESC, id DESC);
CREATE INDEX analyses_list_state ON analyses (owner, state, created_at DESC, id DESC);
CREATE INDEX analyses_list_product ON analyses (owner, product_id, created_at DESC, id DESC) WHERE product_id <> '';
-- The rows that outside workers may claim, in the order of claims: waiting rows, and rows whose
-- lease may have passed.
CREATE INDEX analyses_claim ON analyses (owner, priority DESC, created_at, id) WHERE external AND state IN ('pending', 'processing');
CREATE INDEX analyses_leases ON analyses (lease_expires_at) WHERE lease_expires_at IS NOT NULL;

ALTER TABLE conversions ENABLE ROW LEVEL SECURITY;
ALTER TABLE conversions FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON conversions TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker reads a job's owner from the job's row; the reaper looks for leases that have passed.
CREATE POLICY claiming ON conversions FOR SELECT TO conversions_worker USING (true);

ALTER TABLE generations ENABLE ROW LEVEL SECURITY;
ALTER TABLE generations FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON generations TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker reads a job's owner from the job's row; the reaper looks for leases that have passed.
CREATE POLICY claiming ON generations FOR SELECT TO conversions_worker USING (true);

ALTER TABLE analyses ENABLE ROW LEVEL SECURITY;
ALTER TABLE analyses FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON analyses TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker reads a job's owner from the job's row; the reaper looks for leases that have passed.
CREATE POLICY claiming ON analyses FOR SELECT TO conversions_worker USING (true);

-- How the providers of models are doing, one row each; a provider without a row was never in trouble.
-- It is the same for all owners and holds nothing of any. `switched_by` is an actor, or `atelier` for
-- this service itself. Nothing is sent to the provider before `paused_until`.
CREATE TABLE providers (
    name text NOT NULL,
    switched_off boolean NOT NULL DEFAULT false,
    switched_by text NOT NULL DEFAULT '',
    switched_at timestamptz,
    paused_until timestamptz,
    reason text NOT NULL DEFAULT '',
    failures integer NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT providers_pkey PRIMARY KEY (name),
    CONSTRAINT providers_switched CHECK (switched_off = false OR switched_at IS NOT NULL)
);

-- Which providers serve an owner for a task, instead of the deployment's table.
CREATE TABLE provider_routes (
    owner text NOT NULL,
    task text NOT NULL,
    providers text[] NOT NULL,
    set_by text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT provider_routes_pkey PRIMARY KEY (owner, task)
);

-- Every call to a provider that may charge for it. The row is there before the call is sent, so that
-- a call whose answer is lost is known. `handle` is what the result can be asked for with.
CREATE TABLE provider_calls (
    id uuid NOT NULL,
    owner text NOT NULL,
    job text NOT NULL,
    job_id uuid NOT NULL,
    attempt_id uuid NOT NULL,
    provider text NOT NULL,
    model text NOT NULL,
    task text NOT NULL,
    state text NOT NULL DEFAULT 'begun',
    handle text NOT NULL DEFAULT '',
    charge text NOT NULL DEFAULT 'possible',
    usage jsonb NOT NULL DEFAULT '{}',
    error_class text NOT NULL DEFAULT '',
    category text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    CONSTRAINT provider_calls_pkey PRIMARY KEY (id),
    CONSTRAINT provider_calls_state CHECK (state IN ('begun', 'submitted', 'answered', 'failed', 'lost')),
    CONSTRAINT provider_calls_charge CHECK (charge IN ('none', 'possible', 'charged')),
    CONSTRAINT provider_calls_ended CHECK ((state IN ('begun', 'submitted')) = (ended_at IS NULL)),
    -- Only what can be asked for again was submitted.
    CONSTRAINT provider_calls_handle CHECK (state <> 'submitted' OR handle <> '')
);
CREATE INDEX provider_calls_list ON provider_calls (owner, created_at DESC, id DESC);
CREATE INDEX provider_calls_job ON provider_calls (job_id, created_at);
-- Calls under way, for the figures of operators.
CREATE INDEX provider_calls_open ON provider_calls (provider) WHERE ended_at IS NULL;
-- Calls whose texts retention may forget.
CREATE INDEX provider_calls_texts ON provider_calls (ended_at) WHERE ended_at IS NOT NULL AND (handle <> '' OR category <> '');

ALTER TABLE providers ENABLE ROW LEVEL SECURITY;
ALTER TABLE providers FORCE ROW LEVEL SECURITY;
-- The contract lets operators alone switch one; workers write what they meet.
CREATE POLICY asking ON providers TO conversions_app, conversions_worker USING (true);

ALTER TABLE provider_routes ENABLE ROW LEVEL SECURITY;
ALTER TABLE provider_routes FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON provider_routes TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE provider_calls ENABLE ROW LEVEL SECURITY;
ALTER TABLE provider_calls FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON provider_calls TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker looks for calls whose texts are to be forgotten.
CREATE POLICY claiming ON provider_calls FOR SELECT TO conversions_worker USING (true);

-- Which pictures went into which job, written by triggers: arrays and JSON in the jobs' rows can't be
-- searched by an index under row-level security. The roles are those of `ModelJob.inputs`. Rows of a
-- purged job stay as long as its row in purged_makers.
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
    -- only if it is one of DatasetService. A purge forgets the words: prompt, name of the dataset, style.
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
-- A job that was purged still counts; what it said is forgotten.
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
-- An owner's account of credits: the sum of the owner's entries, and what counts against limits.
CREATE TABLE credit_accounts (
    owner text NOT NULL,
    -- What new jobs may reserve, and what is set aside for jobs that haven't ended.
    available bigint NOT NULL DEFAULT 0,
    reserved bigint NOT NULL DEFAULT 0,
    -- True while more is taken than there is: credits are only recorded. Only a statement that sets
    -- it may take an account below 0.
    may_owe boolean NOT NULL DEFAULT false,
    -- The last UTC day with a job or a paid call: what its jobs reserved, without what was released
    -- of it, and the estimated costs of its calls to providers.
    day date NOT NULL DEFAULT '2000-01-01',
    day_credits bigint NOT NULL DEFAULT 0,
    day_cost_micros bigint NOT NULL DEFAULT 0,
    -- The first day of the last UTC month with a free conversion, and their number in it.
    month date NOT NULL DEFAULT '2000-01-01',
    month_free integer NOT NULL DEFAULT 0,
    CONSTRAINT credit_accounts_pkey PRIMARY KEY (owner),
    CONSTRAINT credit_accounts_available CHECK (available >= 0 OR may_owe),
    CONSTRAINT credit_accounts_reserved CHECK (reserved >= 0),
    CONSTRAINT credit_accounts_counts CHECK (least(day_credits, day_cost_micros, month_free) >= 0)
);

-- The ledger. Entries are only added: no role has the right to change or delete one. Their texts are
-- apart, in credit_notes, so that an erasure can drop these and keep the figures.
CREATE TABLE credit_entries (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    owner text NOT NULL,
    kind text NOT NULL,
    -- Above 0, but for an adjustment that takes credits away.
    credits bigint NOT NULL,
    available_change bigint NOT NULL GENERATED ALWAYS AS (
        CASE kind WHEN 'reserve' THEN -credits WHEN 'commit' THEN 0 ELSE credits END) STORED,
    reserved_change bigint NOT NULL GENERATED ALWAYS AS (
        CASE kind WHEN 'reserve' THEN credits WHEN 'commit' THEN -credits WHEN 'release' THEN -credits ELSE 0 END) STORED,
    -- The job's table, id and task; empty and NULL for what an operator did. `attempt`: the attempts
    -- that the job had had by then, and `attempt_id` the last one, if it ended the job.
    job text NOT NULL DEFAULT '',
    job_id uuid,
    task text NOT NULL DEFAULT '',
    attempt integer NOT NULL DEFAULT 0,
    attempt_id uuid,
    -- The clock's time and not the transaction's, which may make several entries of one job.
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The attempts that the job had had when it was last requeued.
    requeued_after integer NOT NULL DEFAULT 0,
    CONSTRAINT credit_entries_pkey PRIMARY KEY (id),
    CONSTRAINT credit_entries_owner_id UNIQUE (owner, id),
    CONSTRAINT credit_entries_kind CHECK (kind IN ('grant', 'reserve', 'commit', 'release', 'adjust')),
    CONSTRAINT credit_entries_credits CHECK (credits > 0 OR (kind = 'adjust' AND credits <> 0)),
    CONSTRAINT credit_entries_job CHECK ((job_id IS NULL) = (kind = 'grant' OR kind = 'adjust')),
    CONSTRAINT credit_entries_named CHECK ((job_id IS NULL) = (job = '') AND (job = '') = (task = ''))
);
-- Nothing happens twice to a job, and it is charged at most once in its life.
CREATE UNIQUE INDEX credit_entries_once ON credit_entries (job_id, kind, attempt, requeued_after) WHERE job_id IS NOT NULL;
CREATE UNIQUE INDEX credit_entries_charged ON credit_entries (job_id) WHERE kind = 'commit';
CREATE INDEX credit_entries_list ON credit_entries (owner, created_at DESC, id DESC);
CREATE INDEX credit_entries_list_kind ON credit_entries (owner, kind, created_at DESC, id DESC);

-- Who made an entry and why, for entries of operators. `reference`: of a grant, unique per owner.
CREATE TABLE credit_notes (
    owner text NOT NULL,
    entry_id uuid NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    reference text NOT NULL,
    CONSTRAINT credit_notes_pkey PRIMARY KEY (owner, entry_id),
    CONSTRAINT credit_notes_entry FOREIGN KEY (owner, entry_id) REFERENCES credit_entries (owner, id)
);
CREATE UNIQUE INDEX credit_notes_reference ON credit_notes (owner, reference) WHERE reference <> '';

-- Limits of an owner, which an operator or the owner itself set; NULL: not set. After `expires_at`
-- they don't hold.
CREATE TABLE credit_budgets (
    owner text NOT NULL,
    set_by text NOT NULL,
    daily_credits bigint,
    daily_cost_micros bigint,
    monthly_free_conversions integer,
    expires_at timestamptz,
    updated_by text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT credit_budgets_pkey PRIMARY KEY (owner, set_by),
    CONSTRAINT credit_budgets_set_by CHECK (set_by IN ('operator', 'owner'))
);

-- Keeps the account the sum of its entries, whoever adds one. An UPDATE first: an INSERT of what is
-- taken away would break the account's constraints before it met the row that is there.
CREATE FUNCTION add_credit_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    LOOP
        UPDATE conversions.credit_accounts SET available = available + NEW.available_change,
            reserved = reserved + NEW.reserved_change, may_owe = may_owe AND available + NEW.available_change < 0
        WHERE owner = NEW.owner;
        EXIT WHEN FOUND;
        INSERT INTO conversions.credit_accounts (owner) VALUES (NEW.owner) ON CONFLICT (owner) DO NOTHING;
    END LOOP;
    RETURN NULL;
END $$;
CREATE TRIGGER add_credit_entry AFTER INSERT ON credit_entries
    FOR EACH ROW EXECUTE FUNCTION add_credit_entry();

-- The limits that hold for an owner now. The parameters are the settings' limits; NULL: none.
CREATE FUNCTION credit_limits(of_owner text, setting_credits bigint, setting_cost_micros bigint, setting_free integer)
RETURNS TABLE (daily_credits bigint, daily_cost_micros bigint, monthly_free_conversions integer)
LANGUAGE sql STABLE AS $$
    SELECT least(coalesce(max(b.daily_credits) FILTER (WHERE b.set_by = 'operator'), setting_credits),
                 max(b.daily_credits) FILTER (WHERE b.set_by = 'owner')),
           least(coalesce(max(b.daily_cost_micros) FILTER (WHERE b.set_by = 'operator'), setting_cost_micros),
                 max(b.daily_cost_micros) FILTER (WHERE b.set_by = 'owner')),
           coalesce(max(b.monthly_free_conversions) FILTER (WHERE b.set_by = 'operator'), setting_free)
    FROM conversions.credit_budgets b
    WHERE b.owner = of_owner AND (b.expires_at IS NULL OR b.expires_at > now())
$$;

-- Sets the price of a job aside, or counts a free conversion, at the end of the transaction that
-- inserts the job's row with the same `credits_reserved`: the account stays locked for a moment only.
-- Raises ATL01 if the job may not be created so: `credits` if the account doesn't cover it and credits
-- are enforced, `budget` if the day's budget doesn't, `paid` if the month's free quota is used up. The
-- detail has the figures as JSON. NULL in a setting: no limit. `after_attempts`: the attempts that a job
-- had had which is requeued.
CREATE FUNCTION reserve_credits(
    of_owner text, of_job text, of_id uuid, of_task text, price bigint, is_free boolean, enforced boolean,
    setting_credits bigint, setting_cost_micros bigint, setting_free integer, after_attempts integer DEFAULT 0
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
    this_month date := date_trunc('month', now() AT TIME ZONE 'UTC')::date;
    paid bigint := CASE WHEN is_free THEN 0 ELSE price END;
    account record;
    limits record;
    problem text;
BEGIN
    LOOP
        -- A transaction that began before midnight may come after one that began later.
        UPDATE conversions.credit_accounts a SET
            day = greatest(a.day, today), month = greatest(a.month, this_month),
            day_credits = CASE WHEN a.day < today THEN 0 ELSE a.day_credits END + paid,
            day_cost_micros = CASE WHEN a.day < today THEN 0 ELSE a.day_cost_micros END,
            month_free = CASE WHEN a.month < this_month THEN 0 ELSE a.month_free END + is_free::integer,
            may_owe = a.may_owe OR a.available < paid
        WHERE a.owner = of_owner
        RETURNING a.available, a.day_credits - paid AS spent, a.day_credits, a.month_free INTO account;
        EXIT WHEN FOUND;
        INSERT INTO conversions.credit_accounts (owner) VALUES (of_owner) ON CONFLICT (owner) DO NOTHING;
    END LOOP;
    SELECT l.daily_credits, l.monthly_free_conversions INTO limits
    FROM conversions.credit_limits(of_owner, setting_credits, setting_cost_micros, setting_free) l;
    problem := CASE
        WHEN is_free AND account.month_free > limits.monthly_free_conversions THEN 'paid'
        WHEN paid > 0 AND account.day_credits > limits.daily_credits THEN 'budget'
        WHEN paid > 0 AND enforced AND account.available < paid THEN 'credits'
    END;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'ATL01', MESSAGE = problem, DETAIL = json_build_object(
            'available', account.available, 'spent', account.spent, 'budget', limits.daily_credits);
    END IF;
    IF paid > 0 THEN
        INSERT INTO conversions.credit_entries (owner, kind, credits, job, job_id, task, attempt, requeued_after)
        VALUES (of_owner, 'reserve', paid, of_job, of_id, of_task, after_attempts, after_attempts);
    END IF;
END $$;

-- Counts the estimated cost of a call to a paid provider, unless it would exceed the day's budget.
-- `counted_on`: the day whose costs it is among.
CREATE FUNCTION count_provider_cost(
    of_owner text, cost_micros bigint, setting_credits bigint, setting_cost_micros bigint, setting_free integer
) RETURNS TABLE (allowed boolean, spent bigint, budget bigint, counted_on date)
LANGUAGE plpgsql AS $$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
BEGIN
    LOOP
        UPDATE conversions.credit_accounts a SET
            day = greatest(a.day, today),
            day_credits = CASE WHEN a.day < today THEN 0 ELSE a.day_credits END,
            day_cost_micros = CASE WHEN a.day < today THEN 0 ELSE a.day_cost_micros END + cost_micros
        WHERE a.owner = of_owner
        RETURNING a.day_cost_micros - cost_micros, a.day INTO spent, counted_on;
        EXIT WHEN FOUND;
        INSERT INTO conversions.credit_accounts (owner) VALUES (of_owner) ON CONFLICT (owner) DO NOTHING;
    END LOOP;
    SELECT l.daily_cost_micros INTO budget
    FROM conversions.credit_limits(of_owner, setting_credits, setting_cost_micros, setting_free) l;
    allowed := coalesce(spent + cost_micros <= budget, true);
    IF NOT allowed THEN
        UPDATE conversions.credit_accounts a SET day_cost_micros = spent WHERE a.owner = of_owner;
    END IF;
    RETURN NEXT;
END $$;

-- Settles what a job reserved, in the statement that ends or deletes it: what it cost is charged, at
-- most what was reserved, and the rest is released. Whatever ends a job, it is settled so, exactly
-- once. A free conversion without a result doesn't count in its month.
CREATE FUNCTION settle_credits() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    named text := TG_ARGV[0];
    rest bigint;
    reserved_at timestamptz := coalesce(OLD.requeued_at, OLD.created_at);
BEGIN
    IF TG_OP = 'DELETE' THEN
        NEW := OLD;
        NEW.credits := 0;
    END IF;
    NEW.credits := least(NEW.credits, OLD.credits_reserved);
    NEW.credits_reserved := 0;
    rest := OLD.credits_reserved - NEW.credits;
    IF named IS NULL THEN
        named := NEW.task;
    ELSIF NEW.free AND NOT NEW.external AND NEW.state <> 'completed' THEN
        UPDATE conversions.credit_accounts SET month_free = greatest(month_free - 1, 0)
        WHERE owner = NEW.owner AND month = date_trunc('month', reserved_at AT TIME ZONE 'UTC')::date;
    END IF;
    IF NEW.credits > 0 THEN
        INSERT INTO conversions.credit_entries (owner, kind, credits, job, job_id, task, attempt, attempt_id, requeued_after)
        VALUES (NEW.owner, 'commit', NEW.credits, TG_TABLE_NAME, NEW.id, named, NEW.attempt_number,
            coalesce(NEW.attempt_token, OLD.attempt_token), NEW.requeued_after);
    END IF;
    IF rest > 0 THEN
        UPDATE conversions.credit_accounts SET day_credits = day_credits - rest
        WHERE owner = NEW.owner AND day = (reserved_at AT TIME ZONE 'UTC')::date;
        INSERT INTO conversions.credit_entries (owner, kind, credits, job, job_id, task, attempt, attempt_id, requeued_after)
        VALUES (NEW.owner, 'release', rest, TG_TABLE_NAME, NEW.id, named, NEW.attempt_number,
            coalesce(NEW.attempt_token, OLD.attempt_token), NEW.requeued_after);
    END IF;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END $$;
CREATE TRIGGER settle_credits BEFORE UPDATE OF state ON conversions FOR EACH ROW
    WHEN (OLD.state IN ('pending', 'processing') AND NEW.state NOT IN ('pending', 'processing'))
    EXECUTE FUNCTION settle_credits('conversion');
CREATE TRIGGER settle_credits BEFORE UPDATE OF state ON generations FOR EACH ROW
    WHEN (OLD.state IN ('pending', 'processing') AND NEW.state NOT IN ('pending', 'processing'))
    EXECUTE FUNCTION settle_credits();
CREATE TRIGGER settle_credits BEFORE UPDATE OF state ON analyses FOR EACH ROW
    WHEN (OLD.state IN ('pending', 'processing') AND NEW.state NOT IN ('pending', 'processing'))
    EXECUTE FUNCTION settle_credits();
CREATE TRIGGER settle_deleted BEFORE DELETE ON conversions FOR EACH ROW
    WHEN (OLD.credits_reserved > 0) EXECUTE FUNCTION settle_credits('conversion');
CREATE TRIGGER settle_deleted BEFORE DELETE ON generations FOR EACH ROW
    WHEN (OLD.credits_reserved > 0) EXECUTE FUNCTION settle_credits();
CREATE TRIGGER settle_deleted BEFORE DELETE ON analyses FOR EACH ROW
    WHEN (OLD.credits_reserved > 0) EXECUTE FUNCTION settle_credits();
-- What the ledger's check adds up.
CREATE INDEX conversions_reserved ON conversions (owner, credits_reserved) WHERE credits_reserved > 0;
CREATE INDEX generations_reserved ON generations (owner, credits_reserved) WHERE credits_reserved > 0;
CREATE INDEX analyses_reserved ON analyses (owner, credits_reserved) WHERE credits_reserved > 0;

-- An operator reads and writes accounts across owners in transactions that set app.operator.
ALTER TABLE credit_accounts ENABLE ROW LEVEL SECURITY;
ALTER TABLE credit_accounts FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON credit_accounts TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY operating ON credit_accounts TO conversions_app USING (current_setting('app.operator', true) = 'on');
-- The check compares all accounts with their entries.
CREATE POLICY checking ON credit_accounts FOR SELECT TO conversions_worker USING (true);

-- No policy lets anybody change or delete an entry, and no right does.
ALTER TABLE credit_entries ENABLE ROW LEVEL SECURITY;
ALTER TABLE credit_entries FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON credit_entries FOR SELECT TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY adding ON credit_entries FOR INSERT TO conversions_app, conversions_worker
    WITH CHECK (owner = NULLIF(current_setting('app.owner_id', true), '') AND kind IN ('reserve', 'commit', 'release'));
CREATE POLICY operating ON credit_entries FOR SELECT TO conversions_app
    USING (current_setting('app.operator', true) = 'on');
CREATE POLICY granting ON credit_entries FOR INSERT TO conversions_app
    WITH CHECK (current_setting('app.operator', true) = 'on' AND kind IN ('grant', 'adjust'));
CREATE POLICY checking ON credit_entries FOR SELECT TO conversions_worker USING (true);

ALTER TABLE credit_notes ENABLE ROW LEVEL SECURITY;
ALTER TABLE credit_notes FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON credit_notes FOR SELECT TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY operating ON credit_notes TO conversions_app USING (current_setting('app.operator', true) = 'on');
-- An erasure drops what people wrote.
CREATE POLICY erasing ON credit_notes FOR DELETE TO conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE credit_budgets ENABLE ROW LEVEL SECURITY;
ALTER TABLE credit_budgets FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON credit_budgets FOR SELECT TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY operating ON credit_budgets TO conversions_app USING (current_setting('app.operator', true) = 'on');
CREATE POLICY erasing ON credit_budgets FOR DELETE TO conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

-- What persons agreed to for photographs of theirs, and the receipt of what revoking it erased. A
-- row is never changed but for what revoking does. `expiry_told`: its expiry was published.
CREATE TABLE consents (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    asset_id uuid NOT NULL,
    purpose text NOT NULL,
    wording_version text NOT NULL,
    wording text NOT NULL,
    given_by text NOT NULL,
    given_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    note text NOT NULL,
    expiry_told boolean NOT NULL DEFAULT false,
    revoked_at timestamptz,
    -- The state of the erasure; NULL: the consent wasn't revoked.
    erasure text,
    erase_photo boolean NOT NULL DEFAULT false,
    jobs_cancelled integer NOT NULL DEFAULT 0,
    pictures_purged integer NOT NULL DEFAULT 0,
    analyses_emptied integer NOT NULL DEFAULT 0,
    photo_purged boolean NOT NULL DEFAULT false,
    -- How many pictures something holds, and the first of them with what holds them.
    pictures_held integer NOT NULL DEFAULT 0,
    held jsonb NOT NULL DEFAULT '[]',
    erased_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT consents_pkey PRIMARY KEY (id),
    CONSTRAINT consents_owner_id UNIQUE (owner, id),
    CONSTRAINT consents_purpose CHECK (purpose IN ('try_on', 'generation', 'analysis', 'all')),
    CONSTRAINT consents_erasure CHECK (erasure IN ('running', 'complete', 'held')),
    CONSTRAINT consents_revoked CHECK ((revoked_at IS NULL) = (erasure IS NULL)),
    CONSTRAINT consents_erased CHECK ((erased_at IS NULL) = (erasure IS NULL OR erasure = 'running')),
    CONSTRAINT consents_given CHECK (expires_at > given_at)
);
CREATE INDEX consents_list ON consents (owner, created_at DESC, id DESC);
CREATE INDEX consents_list_asset ON consents (owner, asset_id, created_at DESC, id DESC);
-- Consents whose expiry is to be told.
CREATE INDEX consents_expire ON consents (expires_at) WHERE NOT expiry_told AND revoked_at IS NULL;
-- Revoked consents whose pictures aren't all erased, for the metrics.
CREATE INDEX consents_open ON consents (erasure, updated_at) WHERE erasure IN ('running', 'held');

-- What an erasure has met, each once, so that the receipt counts it once, whatever happens to the
-- worker. A row is there before the picture is purged, and `done` after it.
CREATE TABLE erasure_items (
    owner text NOT NULL,
    consent_id uuid NOT NULL,
    item_id uuid NOT NULL,
    kind text NOT NULL,
    done boolean NOT NULL DEFAULT false,
    CONSTRAINT erasure_items_pkey PRIMARY KEY (owner, consent_id, item_id),
    CONSTRAINT erasure_items_consent FOREIGN KEY (owner, consent_id) REFERENCES consents (owner, id) ON DELETE CASCADE,
    CONSTRAINT erasure_items_kind CHECK (kind IN ('job', 'picture'))
);

ALTER TABLE consents ENABLE ROW LEVEL SECURITY;
ALTER TABLE consents FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON consents TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker reads a consent's owner from its row, and looks for those that expired.
CREATE POLICY claiming ON consents FOR SELECT TO conversions_worker USING (true);

ALTER TABLE erasure_items ENABLE ROW LEVEL SECURITY;
ALTER TABLE erasure_items FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON erasure_items TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

-- Copies of pictures with a visible label. Nothing else says of which picture a copy was made.
CREATE TABLE picture_copies (
    owner text NOT NULL,
    copy_asset_id uuid NOT NULL,
    asset_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT picture_copies_pkey PRIMARY KEY (owner, copy_asset_id)
);
CREATE INDEX picture_copies_asset ON picture_copies (owner, asset_id, copy_asset_id);

ALTER TABLE picture_copies ENABLE ROW LEVEL SECURITY;
ALTER TABLE picture_copies FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON picture_copies TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

-- A batch: conversions or generations that are asked for, paid for and stopped together. Its items are
-- rows of the table `job`; `made` says how many of them exist, in the order of their numbers.
CREATE TABLE batches (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    name text NOT NULL,
    job text NOT NULL,
    total integer NOT NULL,
    made integer NOT NULL DEFAULT 0,
    priority smallint NOT NULL,
    provider text NOT NULL,
    -- The most that all items together may cost; NULL: no limit.
    max_credits bigint,
    state text NOT NULL DEFAULT 'running',
    pause_reason text NOT NULL DEFAULT '',
    pause_message text NOT NULL DEFAULT '',
    -- True while waiting items may lack their job in the queue, because the batch was paused.
    held boolean NOT NULL DEFAULT false,
    -- The place before the owner's other jobs, higher first; 0: among them.
    front integer NOT NULL DEFAULT 0,
    -- The number of the job that conducts the batch: a job with an older one ends.
    round integer NOT NULL DEFAULT 0,
    -- Items that failed until then are to be tried again: those of these error classes, or all.
    retry_until timestamptz,
    retry_classes text[] NOT NULL DEFAULT '{}',
    -- What was counted last, see Figures in batch_rows.py.
    figures jsonb NOT NULL DEFAULT '{}',
    ended_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT batches_pkey PRIMARY KEY (id),
    CONSTRAINT batches_owner_id UNIQUE (owner, id),
    CONSTRAINT batches_job CHECK (job IN ('conversions', 'generations')),
    CONSTRAINT batches_state CHECK (state IN ('running', 'paused', 'completed', 'cancelled')),
    CONSTRAINT batches_pause_reason CHECK (pause_reason IN ('', 'requested', 'credits_exhausted', 'budget_exceeded', 'max_credits', 'consent', 'provider')),
    CONSTRAINT batches_paused CHECK ((state = 'paused') = (pause_reason <> '')),
    CONSTRAINT batches_made CHECK (made BETWEEN 0 AND total)
);
CREATE INDEX batches_list ON batches (owner, created_at DESC, id DESC);
CREATE INDEX batches_list_state ON batches (owner, state, created_at DESC, id DESC);
CREATE INDEX batches_open ON batches (state, pause_reason) WHERE state IN ('running', 'paused');

-- What a batch was asked for, and what was read of its pictures then; see batch_plans.py. Apart from
-- the batch, whose row is read and published often.
CREATE TABLE batch_plans (
    owner text NOT NULL,
    batch_id uuid NOT NULL,
    plan jsonb NOT NULL,
    CONSTRAINT batch_plans_pkey PRIMARY KEY (owner, batch_id),
    CONSTRAINT batch_plans_batch FOREIGN KEY (owner, batch_id) REFERENCES batches (owner, id) ON DELETE CASCADE
);

-- The pictures that the items of a batch are made from. Until it has ended they are needed, also for
-- items that aren't created yet.
CREATE TABLE batch_pictures (
    owner text NOT NULL,
    batch_id uuid NOT NULL,
    asset_id uuid NOT NULL,
    CONSTRAINT batch_pictures_pkey PRIMARY KEY (owner, batch_id, asset_id),
    CONSTRAINT batch_pictures_batch FOREIGN KEY (owner, batch_id) REFERENCES batches (owner, id) ON DELETE CASCADE
);
CREATE INDEX batch_pictures_asset ON batch_pictures (owner, asset_id);

-- Items that were purged: they still count in their batch, and what they cost in its max_credits. A row
-- is added without a lock of the batch's row but one that keeps it from being deleted.
CREATE TABLE purged_items (
    owner text NOT NULL,
    batch_id uuid NOT NULL,
    batch_item integer NOT NULL,
    state text NOT NULL,
    error_class text NOT NULL,
    credits bigint NOT NULL,
    CONSTRAINT purged_items_pkey PRIMARY KEY (owner, batch_id, batch_item),
    CONSTRAINT purged_items_batch FOREIGN KEY (owner, batch_id) REFERENCES batches (owner, id) ON DELETE CASCADE,
    CONSTRAINT purged_items_state CHECK (state IN ('completed', 'failed', 'cancelled'))
);

CREATE FUNCTION note_purged_item() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM conversions.batches WHERE owner = OLD.owner AND id = OLD.batch_id FOR KEY SHARE;
    IF FOUND THEN
        INSERT INTO conversions.purged_items (owner, batch_id, batch_item, state, error_class, credits)
        VALUES (OLD.owner, OLD.batch_id, OLD.batch_item, OLD.state, OLD.error_class, OLD.credits);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER note_purged_item AFTER DELETE ON conversions FOR EACH ROW
    WHEN (OLD.batch_item IS NOT NULL AND OLD.state IN ('completed', 'failed', 'cancelled'))
    EXECUTE FUNCTION note_purged_item();
CREATE TRIGGER note_purged_item AFTER DELETE ON generations FOR EACH ROW
    WHEN (OLD.batch_item IS NOT NULL AND OLD.state IN ('completed', 'failed', 'cancelled'))
    EXECUTE FUNCTION note_purged_item();

-- An item that fails so pauses its batch (job_moves.py). The batch is locked before the account of
-- credits, as it is everywhere: triggers run in the order of their names, and settle_credits locks that.
CREATE FUNCTION lock_batch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM conversions.batches WHERE owner = NEW.owner AND id = NEW.batch_id FOR NO KEY UPDATE;
    RETURN NEW;
END $$;
CREATE TRIGGER lock_batch BEFORE UPDATE OF state ON conversions FOR EACH ROW
    WHEN (NEW.batch_id IS NOT NULL AND NEW.state = 'failed' AND NEW.error_class IN ('BUDGET_EXCEEDED', 'CONSENT'))
    EXECUTE FUNCTION lock_batch();
CREATE TRIGGER lock_batch BEFORE UPDATE OF state ON generations FOR EACH ROW
    WHEN (NEW.batch_id IS NOT NULL AND NEW.state = 'failed' AND NEW.error_class IN ('BUDGET_EXCEEDED', 'CONSENT'))
    EXECUTE FUNCTION lock_batch();

-- Whatever happens to a worker, no item has two rows.
CREATE UNIQUE INDEX conversions_batch_item ON conversions (owner, batch_id, batch_item) WHERE batch_item IS NOT NULL;
CREATE UNIQUE INDEX generations_batch_item ON generations (owner, batch_id, batch_item) WHERE batch_item IS NOT NULL;
CREATE INDEX conversions_list_batch ON conversions (owner, batch_id, created_at DESC, id DESC) WHERE batch_id IS NOT NULL;
CREATE INDEX generations_list_batch ON generations (owner, batch_id, created_at DESC, id DESC) WHERE batch_id IS NOT NULL;

ALTER TABLE batches ENABLE ROW LEVEL SECURITY;
ALTER TABLE batches FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON batches TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker reads a batch's owner from its row.
CREATE POLICY claiming ON batches FOR SELECT TO conversions_worker USING (true);

ALTER TABLE batch_plans ENABLE ROW LEVEL SECURITY;
ALTER TABLE batch_plans FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON batch_plans TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE batch_pictures ENABLE ROW LEVEL SECURITY;
ALTER TABLE batch_pictures FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON batch_pictures TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE purged_items ENABLE ROW LEVEL SECURITY;
ALTER TABLE purged_items FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON purged_items TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

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

-- Jobs that failed for good through no fault of their owners, one row each, for operators. Triggers
-- write it: a job that is requeued, deleted, or tried again by its owner is no longer here. One that is
-- undeleted comes back. What an operator dismisses is deleted here.
CREATE TABLE dead_jobs (
    id uuid NOT NULL,
    owner text NOT NULL,
    job text NOT NULL,
    task text NOT NULL,
    error_class text NOT NULL,
    error_message text NOT NULL,
    -- The provider that was asked last, or that the job waited for; empty: none that is recorded.
    provider text NOT NULL,
    external boolean NOT NULL,
    attempts integer NOT NULL,
    job_created_at timestamptz NOT NULL,
    requeued_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT dead_jobs_pkey PRIMARY KEY (id),
    CONSTRAINT dead_jobs_job CHECK (job IN ('conversions', 'generations', 'analyses'))
);
CREATE INDEX dead_jobs_list ON dead_jobs (created_at DESC, id DESC);
CREATE INDEX dead_jobs_list_owner ON dead_jobs (owner, created_at DESC, id DESC);

-- Every requeue of a dead job: who did it and why, and what the job had failed of.
CREATE TABLE job_requeues (
    id uuid NOT NULL,
    owner text NOT NULL,
    job text NOT NULL,
    job_id uuid NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    error_class text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT job_requeues_pkey PRIMARY KEY (owner, id),
    CONSTRAINT job_requeues_job CHECK (job IN ('conversions', 'generations', 'analyses'))
);
CREATE INDEX job_requeues_list ON job_requeues (owner, job_id, created_at DESC);

-- Dead jobs that an operator took off the list: who did it and why, and what the job had failed of.
CREATE TABLE job_dismissals (
    job_id uuid NOT NULL,
    owner text NOT NULL,
    job text NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    error_class text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT job_dismissals_pkey PRIMARY KEY (owner, job_id),
    CONSTRAINT job_dismissals_job CHECK (job IN ('conversions', 'generations', 'analyses'))
);

CREATE FUNCTION note_dead_job() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    named text := TG_ARGV[0];
    was_settled boolean;
BEGIN
    IF OLD.state = 'failed' THEN  -- it was undeleted
        EXECUTE format('SELECT EXISTS (SELECT FROM conversions.%I WHERE owner = $1 AND retry_of = $2)', TG_TABLE_NAME)
            INTO was_settled USING NEW.owner, NEW.id;
        IF was_settled OR EXISTS (SELECT FROM conversions.job_dismissals WHERE owner = NEW.owner AND job_id = NEW.id) THEN
            RETURN NULL;
        END IF;
    END IF;
    IF named <> 'conversion' THEN
        named := named || '.' || NEW.task;
    END IF;
    INSERT INTO conversions.dead_jobs (id, owner, job, task, error_class, error_message, provider, external, attempts,
        job_created_at, requeued_at, created_at)
    VALUES (NEW.id, NEW.owner, TG_TABLE_NAME, named, NEW.error_class, NEW.error_message,
        -- A provider that is left alone has a row among the providers, and no call.
        coalesce((SELECT name FROM conversions.providers WHERE name = OLD.waits_for),
            (SELECT provider FROM conversions.provider_calls WHERE job_id = NEW.id ORDER BY created_at DESC, id DESC LIMIT 1),
            NULLIF(NEW.provider, 'local'), ''),
        NEW.external, NEW.attempt_number, NEW.created_at, NEW.requeued_at, coalesce(NEW.ended_at, now()))
    ON CONFLICT (id) DO NOTHING;
    RETURN NULL;
END $$;
CREATE FUNCTION forget_dead_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        DELETE FROM conversions.dead_jobs WHERE owner = NEW.owner AND id = NEW.retry_of;
    ELSE
        DELETE FROM conversions.dead_jobs WHERE owner = OLD.owner AND id = OLD.id;
    END IF;
    IF TG_OP = 'DELETE' THEN
        DELETE FROM conversions.job_requeues WHERE owner = OLD.owner AND job_id = OLD.id;
        DELETE FROM conversions.job_dismissals WHERE owner = OLD.owner AND job_id = OLD.id;
    END IF;
    RETURN NULL;
END $$;
-- The words are those of rules.FINAL_ERRORS: what they name is for the owner to mend.
CREATE TRIGGER note_dead_job AFTER UPDATE OF state ON conversions FOR EACH ROW
    WHEN (OLD.state <> 'failed' AND NEW.state = 'failed' AND NEW.error_class NOT IN ('BAD_INPUT', 'REFUSED', 'BUDGET_EXCEEDED', 'CONSENT'))
    EXECUTE FUNCTION note_dead_job('conversion');
CREATE TRIGGER note_undeleted_job AFTER UPDATE OF deleted_at ON conversions FOR EACH ROW
    WHEN (OLD.deleted_at IS NOT NULL AND NEW.deleted_at IS NULL AND NEW.state = 'failed'
        AND NEW.error_class NOT IN ('BAD_INPUT', 'REFUSED', 'BUDGET_EXCEEDED', 'CONSENT'))
    EXECUTE FUNCTION note_dead_job('conversion');
CREATE TRIGGER leave_dead_jobs AFTER UPDATE OF state, deleted_at ON conversions FOR EACH ROW
    WHEN (OLD.state = 'failed' AND (NEW.state <> 'failed' OR NEW.deleted_at IS NOT NULL)) EXECUTE FUNCTION forget_dead_job();
CREATE TRIGGER retry_dead_job AFTER INSERT ON conversions FOR EACH ROW
    WHEN (NEW.retry_of IS NOT NULL) EXECUTE FUNCTION forget_dead_job();
CREATE TRIGGER forget_dead_job AFTER DELETE ON conversions FOR EACH ROW EXECUTE FUNCTION forget_dead_job();
CREATE TRIGGER note_dead_job AFTER UPDATE OF state ON generations FOR EACH ROW
    WHEN (OLD.state <> 'failed' AND NEW.state = 'failed' AND NEW.error_class NOT IN ('BAD_INPUT', 'REFUSED', 'BUDGET_EXCEEDED', 'CONSENT'))
    EXECUTE FUNCTION note_dead_job('generation');
CREATE TRIGGER note_undeleted_job AFTER UPDATE OF deleted_at ON generations FOR EACH ROW
    WHEN (OLD.deleted_at IS NOT NULL AND NEW.deleted_at IS NULL AND NEW.state = 'failed'
        AND NEW.error_class NOT IN ('BAD_INPUT', 'REFUSED', 'BUDGET_EXCEEDED', 'CONSENT'))
    EXECUTE FUNCTION note_dead_job('generation');
CREATE TRIGGER leave_dead_jobs AFTER UPDATE OF state, deleted_at ON generations FOR EACH ROW
    WHEN (OLD.state = 'failed' AND (NEW.state <> 'failed' OR NEW.deleted_at IS NOT NULL)) EXECUTE FUNCTION forget_dead_job();
CREATE TRIGGER retry_dead_job AFTER INSERT ON generations FOR EACH ROW
    WHEN (NEW.retry_of IS NOT NULL) EXECUTE FUNCTION forget_dead_job();
CREATE TRIGGER forget_dead_job AFTER DELETE ON generations FOR EACH ROW EXECUTE FUNCTION forget_dead_job();
CREATE TRIGGER note_dead_job AFTER UPDATE OF state ON analyses FOR EACH ROW
    WHEN (OLD.state <> 'failed' AND NEW.state = 'failed' AND NEW.error_class NOT IN ('BAD_INPUT', 'REFUSED', 'BUDGET_EXCEEDED', 'CONSENT'))
    EXECUTE FUNCTION note_dead_job('analysis');
CREATE TRIGGER note_undeleted_job AFTER UPDATE OF deleted_at ON analyses FOR EACH ROW
    WHEN (OLD.deleted_at IS NOT NULL AND NEW.deleted_at IS NULL AND NEW.state = 'failed'
        AND NEW.error_class NOT IN ('BAD_INPUT', 'REFUSED', 'BUDGET_EXCEEDED', 'CONSENT'))
    EXECUTE FUNCTION note_dead_job('analysis');
CREATE TRIGGER leave_dead_jobs AFTER UPDATE OF state, deleted_at ON analyses FOR EACH ROW
    WHEN (OLD.state = 'failed' AND (NEW.state <> 'failed' OR NEW.deleted_at IS NOT NULL)) EXECUTE FUNCTION forget_dead_job();
CREATE TRIGGER retry_dead_job AFTER INSERT ON analyses FOR EACH ROW
    WHEN (NEW.retry_of IS NOT NULL) EXECUTE FUNCTION forget_dead_job();
CREATE TRIGGER forget_dead_job AFTER DELETE ON analyses FOR EACH ROW EXECUTE FUNCTION forget_dead_job();

ALTER TABLE dead_jobs ENABLE ROW LEVEL SECURITY;
ALTER TABLE dead_jobs FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON dead_jobs TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- An operator reads dead jobs across owners in transactions that set app.operator.
CREATE POLICY operating ON dead_jobs FOR SELECT TO conversions_app
    USING ((SELECT current_setting('app.operator', true) = 'on'));
-- A worker counts them.
CREATE POLICY counting ON dead_jobs FOR SELECT TO conversions_worker USING (true);

ALTER TABLE job_requeues ENABLE ROW LEVEL SECURITY;
ALTER TABLE job_requeues FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON job_requeues TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE job_dismissals ENABLE ROW LEVEL SECURITY;
ALTER TABLE job_dismissals FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON job_dismissals TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

-- When an outside worker of the deployment last claimed a job of an owner: owners take turns.
CREATE TABLE outside_turns (
    owner text NOT NULL,
    claimed_at timestamptz NOT NULL,
    CONSTRAINT outside_turns_pkey PRIMARY KEY (owner)
);
ALTER TABLE outside_turns ENABLE ROW LEVEL SECURITY;
ALTER TABLE outside_turns FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON outside_turns TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

-- A worker of the deployment claims jobs of all owners. The statement that looks for the next one, or
-- for the owner of a claimed one, sets app.claiming and reads owners alone; the transaction then acts
-- for one owner.
CREATE POLICY turns ON outside_turns FOR SELECT TO conversions_app
    USING ((SELECT current_setting('app.claiming', true) = 'on'));
CREATE POLICY outside ON conversions FOR SELECT TO conversions_app
    USING ((SELECT current_setting('app.claiming', true) = 'on') AND external);
CREATE POLICY outside ON generations FOR SELECT TO conversions_app
    USING ((SELECT current_setting('app.claiming', true) = 'on') AND external);
CREATE POLICY outside ON analyses FOR SELECT TO conversions_app
    USING ((SELECT current_setting('app.claiming', true) = 'on') AND external);
CREATE POLICY outside ON attempts FOR SELECT TO conversions_app
    USING ((SELECT current_setting('app.claiming', true) = 'on') AND starts_with(worker, 'outside:'));

-- A callback names a call by its handle alone. The statement that looks for the call sets
-- app.calling_back, and reads which one it is.
CREATE POLICY calling_back ON provider_calls FOR SELECT TO conversions_app
    USING ((SELECT current_setting('app.calling_back', true) = 'on') AND ended_at IS NULL);

-- What is refused for an erased owner: every row that a call adds, a result that comes late, and a
-- call to a provider. Rows that other rows' triggers add, and the ledger, which is kept, have no
-- trigger of their own.
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON conversions
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON generations
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON analyses
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON datasets
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON provider_routes
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON provider_calls
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON credit_notes
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON credit_budgets
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON consents
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON picture_copies
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON batches
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_late_result BEFORE UPDATE OF state ON conversions FOR EACH ROW
    WHEN (OLD.state <> 'completed' AND NEW.state = 'completed') EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_late_result BEFORE UPDATE OF state ON generations FOR EACH ROW
    WHEN (OLD.state <> 'completed' AND NEW.state = 'completed') EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_late_result BEFORE UPDATE OF state ON analyses FOR EACH ROW
    WHEN (OLD.state <> 'completed' AND NEW.state = 'completed') EXECUTE FUNCTION refuse_erased_owner();
