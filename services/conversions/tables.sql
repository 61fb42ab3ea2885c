-- The schema of `conversions`, with its policies. Common tables (requests, events, event_stream,
-- attempts) are in shared/database/tables.sql. A migration changes both this file and the database;
-- a test compares them.
--
-- Each row of the three nouns is its own job: the columns from `state` on are the same for all.
-- `external`: an outside runner runs it, and the service's queue has no job for it.

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
    CONSTRAINT conversions_pkey PRIMARY KEY (id),
    CONSTRAINT conversions_state CHECK (state IN ('pending', 'processing', 'completed', 'failed', 'cancelled')),
    -- A completed row has a result and a recipe.
    CONSTRAINT conversions_completed_has_result CHECK (state <> 'completed' OR (result_asset_id IS NOT NULL AND recipe IS NOT NULL)),
    CONSTRAINT conversions_confidence CHECK (confidence BETWEEN 0 AND 1),
    CONSTRAINT conversions_progress CHECK (progress BETWEEN 0 AND 1),
    -- Only a completed row may cost credits.
    CONSTRAINT conversions_credits CHECK (credits = 0 OR (credits > 0 AND state = 'completed')),
    CONSTRAINT conversions_failed_has_reason CHECK (state <> 'failed' OR error_class <> ''),
    CONSTRAINT conversions_priority CHECK (priority BETWEEN 0 AND 9),
    -- A row has a lease exactly while an outside runner has claimed it.
    CONSTRAINT conversions_lease CHECK ((external AND state = 'processing') = (lease_expires_at IS NOT NULL)),
    CONSTRAINT conversions_wait CHECK ((waits_for = '') = (waiting_since IS NULL))
);
CREATE INDEX conversions_waiting ON conversions (waiting_since) WHERE waiting_since IS NOT NULL;
CREATE INDEX conversions_list ON conversions (owner, created_at DESC, id DESC);
CREATE INDEX conversions_list_state ON conversions (owner, state, created_at DESC, id DESC);
CREATE INDEX conversions_list_product ON conversions (owner, product_id, created_at DESC, id DESC) WHERE product_id <> '';
-- The rows that outside runners may claim, in the order of claims: waiting rows, and rows whose
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
    CONSTRAINT generations_failed_has_reason CHECK (state <> 'failed' OR error_class <> ''),
    CONSTRAINT generations_priority CHECK (priority BETWEEN 0 AND 9),
    -- A row has a lease exactly while an outside runner has claimed it.
    CONSTRAINT generations_lease CHECK ((external AND state = 'processing') = (lease_expires_at IS NOT NULL)),
    CONSTRAINT generations_wait CHECK ((waits_for = '') = (waiting_since IS NULL))
);
CREATE INDEX generations_waiting ON generations (waiting_since) WHERE waiting_since IS NOT NULL;
CREATE INDEX generations_list ON generations (owner, created_at DESC, id DESC);
CREATE INDEX generations_list_state ON generations (owner, state, created_at DESC, id DESC);
CREATE INDEX generations_list_product ON generations (owner, product_id, created_at DESC, id DESC) WHERE product_id <> '';
CREATE INDEX generations_list_dataset ON generations (owner, dataset_id, created_at DESC, id DESC) WHERE dataset_id <> '';
-- The rows that outside runners may claim, in the order of claims: waiting rows, and rows whose
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
    CONSTRAINT analyses_pkey PRIMARY KEY (id),
    CONSTRAINT analyses_state CHECK (state IN ('pending', 'processing', 'completed', 'failed', 'cancelled')),
    CONSTRAINT analyses_task CHECK (task IN ('product', 'base_view', 'category', 'sketch', 'seo', 'listing')),
    -- A completed row has a result and a recipe.
    CONSTRAINT analyses_completed_has_result CHECK (state <> 'completed' OR (result IS NOT NULL AND recipe IS NOT NULL)),
    CONSTRAINT analyses_confidence CHECK (confidence BETWEEN 0 AND 1),
    CONSTRAINT analyses_progress CHECK (progress BETWEEN 0 AND 1),
    -- Only a completed row may cost credits.
    CONSTRAINT analyses_credits CHECK (credits = 0 OR (credits > 0 AND state = 'completed')),
    CONSTRAINT analyses_failed_has_reason CHECK (state <> 'failed' OR error_class <> ''),
    CONSTRAINT analyses_priority CHECK (priority BETWEEN 0 AND 9),
    -- A row has a lease exactly while an outside runner has claimed it.
    CONSTRAINT analyses_lease CHECK ((external AND state = 'processing') = (lease_expires_at IS NOT NULL)),
    CONSTRAINT analyses_wait CHECK ((waits_for = '') = (waiting_since IS NULL))
);
CREATE INDEX analyses_waiting ON analyses (waiting_since) WHERE waiting_since IS NOT NULL;
CREATE INDEX analyses_list ON analyses (owner, created_at DESC, id DESC);
CREATE INDEX analyses_list_state ON analyses (owner, state, created_at DESC, id DESC);
CREATE INDEX analyses_list_product ON analyses (owner, product_id, created_at DESC, id DESC) WHERE product_id <> '';
-- The rows that outside runners may claim, in the order of claims: waiting rows, and rows whose
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
