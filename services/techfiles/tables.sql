-- The schema of `techfiles`, with its policies. Common tables (requests, events, event_stream,
-- attempts) are in shared/database/tables.sql. A migration changes both this file and the database;
-- a test compares them.

-- A place for one kind of file of one product. The row is locked while a number is given, so that
-- numbers have no gaps.
CREATE TABLE slots (
    id uuid NOT NULL,
    owner text NOT NULL,
    product_id text NOT NULL,
    file_type text NOT NULL,
    view_type text NOT NULL,
    file_category text NOT NULL,
    last_number integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT slots_pkey PRIMARY KEY (id),
    CONSTRAINT slots_owner_id UNIQUE (owner, id),
    CONSTRAINT slots_place UNIQUE (owner, product_id, file_type, view_type, file_category)
);

-- Files that belong together. An export prints no facts but `facts`, or its own in place of them.
-- Progress, state and credits are derived from the files; overrides are in the override columns and
-- in collection_changes.
CREATE TABLE collections (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    product_id text NOT NULL,
    revision_id text NOT NULL DEFAULT '',
    name text NOT NULL,
    description text NOT NULL DEFAULT '',
    collection_type text NOT NULL,
    facts jsonb NOT NULL DEFAULT '{}',
    progress_override integer,
    state_override text NOT NULL DEFAULT '',
    credits_adjustment bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT collections_pkey PRIMARY KEY (id),
    CONSTRAINT collections_owner_id UNIQUE (owner, id),
    CONSTRAINT collections_type CHECK (
        collection_type IN ('tech_pack_v2', 'base_views_set', 'sketches_set', 'closeups_set')),
    CONSTRAINT collections_progress CHECK (progress_override BETWEEN 0 AND 100),
    CONSTRAINT collections_state CHECK (state_override IN ('', 'pending', 'processing', 'completed', 'failed'))
);
CREATE INDEX collections_list ON collections (owner, created_at DESC, id DESC);
CREATE INDEX collections_list_product ON collections (owner, product_id, created_at DESC, id DESC);

-- A document of a collection, finished or not: the row is the job that makes it.
CREATE TABLE exports (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    collection_id uuid NOT NULL,
    format text NOT NULL,
    facts jsonb,
    state text NOT NULL DEFAULT 'pending',
    version bigint NOT NULL DEFAULT 1,
    attempt_token uuid,
    attempt_number integer NOT NULL DEFAULT 0,
    cancel_requested boolean NOT NULL DEFAULT false,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    file_name text NOT NULL,
    storage_key text NOT NULL DEFAULT '',
    size_bytes bigint NOT NULL DEFAULT 0,
    sha256 text NOT NULL DEFAULT '',
    warnings text[] NOT NULL DEFAULT '{}',
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
    CONSTRAINT exports_pkey PRIMARY KEY (id),
    CONSTRAINT exports_owner_id UNIQUE (owner, id),
    CONSTRAINT exports_collection FOREIGN KEY (owner, collection_id) REFERENCES collections (owner, id),
    CONSTRAINT exports_format CHECK (format IN ('pdf', 'zip')),
    CONSTRAINT exports_state CHECK (state IN ('pending', 'processing', 'completed', 'failed')),
    -- A completed export has bytes.
    CONSTRAINT exports_completed_has_bytes CHECK (state <> 'completed' OR (storage_key <> '' AND sha256 <> '')),
    CONSTRAINT exports_wait CHECK ((waits_for = '') = (waiting_since IS NULL))
);
CREATE INDEX exports_waiting ON exports (waiting_since) WHERE waiting_since IS NOT NULL;
CREATE INDEX exports_collection_id ON exports (collection_id);

-- A file. `number` is its number in its slot, given at `numbered_at` by `created_by`; what it was
-- under earlier numbers is in tech_file_versions.
CREATE TABLE tech_files (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    slot_id uuid NOT NULL,
    product_id text NOT NULL,
    revision_id text NOT NULL DEFAULT '',
    file_type text NOT NULL,
    view_type text NOT NULL DEFAULT '',
    file_category text NOT NULL DEFAULT '',
    file_asset_id uuid,
    analysis jsonb,
    state text NOT NULL DEFAULT 'pending',
    error_message text NOT NULL DEFAULT '',
    credits_used bigint NOT NULL DEFAULT 0,
    model text NOT NULL DEFAULT '',
    prompt text NOT NULL DEFAULT '',
    batch_id text NOT NULL DEFAULT '',
    confidence double precision,
    quality_score double precision,
    number integer NOT NULL,
    numbered_at timestamptz NOT NULL,
    parent_file_id uuid,
    is_latest boolean NOT NULL DEFAULT false,
    collection_id uuid,
    export_id uuid,
    archived_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT tech_files_pkey PRIMARY KEY (id),
    CONSTRAINT tech_files_owner_id UNIQUE (owner, id),
    CONSTRAINT tech_files_number UNIQUE (slot_id, number),
    CONSTRAINT tech_files_slot FOREIGN KEY (owner, slot_id) REFERENCES slots (owner, id),
    CONSTRAINT tech_files_parent FOREIGN KEY (owner, parent_file_id) REFERENCES tech_files (owner, id),
    CONSTRAINT tech_files_collection FOREIGN KEY (owner, collection_id) REFERENCES collections (owner, id),
    CONSTRAINT tech_files_export FOREIGN KEY (owner, export_id) REFERENCES exports (owner, id),
    CONSTRAINT tech_files_type CHECK (file_type IN ('base_view', 'closeup', 'sketch', 'category', 'complete_pack')),
    CONSTRAINT tech_files_view CHECK (view_type IN ('', 'front', 'back', 'side')),
    CONSTRAINT tech_files_state CHECK (state IN ('pending', 'processing', 'completed', 'failed')),
    CONSTRAINT tech_files_base_view CHECK (file_type <> 'base_view' OR (revision_id <> '' AND view_type <> '')),
    CONSTRAINT tech_files_closeup CHECK (file_type <> 'closeup' OR (revision_id = '' AND file_category <> '')),
    CONSTRAINT tech_files_sketch CHECK (file_type <> 'sketch' OR view_type <> ''),
    CONSTRAINT tech_files_pack CHECK ((file_type = 'complete_pack') = (collection_id IS NOT NULL)),
    CONSTRAINT tech_files_fractions CHECK (confidence BETWEEN 0 AND 1 AND quality_score BETWEEN 0 AND 1),
    CONSTRAINT tech_files_latest_is_live CHECK (NOT is_latest OR archived_at IS NULL)
);
-- One latest file per slot.
CREATE UNIQUE INDEX tech_files_latest ON tech_files (slot_id) WHERE is_latest;
CREATE INDEX tech_files_list ON tech_files (owner, created_at DESC, id DESC);
CREATE INDEX tech_files_list_product ON tech_files (owner, product_id, created_at DESC, id DESC);
CREATE INDEX tech_files_list_revision ON tech_files (owner, revision_id, created_at DESC, id DESC)
    WHERE revision_id <> '';
CREATE INDEX tech_files_list_batch ON tech_files (owner, batch_id, created_at DESC, id DESC) WHERE batch_id <> '';

-- A file as it was under a number that it no longer has: the whole row, as JSON.
CREATE TABLE tech_file_versions (
    id uuid NOT NULL,
    owner text NOT NULL,
    slot_id uuid NOT NULL,
    tech_file_id uuid NOT NULL,
    number integer NOT NULL,
    snapshot jsonb NOT NULL,
    created_by text NOT NULL,
    reason text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL,
    CONSTRAINT tech_file_versions_pkey PRIMARY KEY (id),
    CONSTRAINT tech_file_versions_number UNIQUE (slot_id, number),
    CONSTRAINT tech_file_versions_file FOREIGN KEY (owner, tech_file_id) REFERENCES tech_files (owner, id)
);

-- The place of each file in a collection. No two places are equal.
CREATE TABLE collection_items (
    owner text NOT NULL,
    collection_id uuid NOT NULL,
    tech_file_id uuid NOT NULL,
    section text NOT NULL,
    display_order integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT collection_items_pkey PRIMARY KEY (collection_id, tech_file_id),
    CONSTRAINT collection_items_place UNIQUE (collection_id, section, display_order),
    CONSTRAINT collection_items_collection FOREIGN KEY (owner, collection_id) REFERENCES collections (owner, id),
    CONSTRAINT collection_items_file FOREIGN KEY (owner, tech_file_id) REFERENCES tech_files (owner, id)
);
CREATE INDEX collection_items_file_id ON collection_items (tech_file_id);

-- Who overrode the progress or adjusted the credits of a collection, and why. Rows are only added.
CREATE TABLE collection_changes (
    id uuid NOT NULL,
    owner text NOT NULL,
    collection_id uuid NOT NULL,
    actor text NOT NULL,
    kind text NOT NULL,
    value bigint,
    state text NOT NULL DEFAULT '',
    reason text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT collection_changes_pkey PRIMARY KEY (id),
    CONSTRAINT collection_changes_kind CHECK (kind IN ('progress', 'progress_derived', 'credits')),
    CONSTRAINT collection_changes_value CHECK ((kind = 'progress_derived') = (value IS NULL)),
    CONSTRAINT collection_changes_collection FOREIGN KEY (owner, collection_id) REFERENCES collections (owner, id)
);
CREATE INDEX collection_changes_list ON collection_changes (collection_id, created_at DESC, id DESC);

-- A run: the job that makes all files of a pack. `plan` holds its steps, fixed when the run is
-- created.
CREATE TABLE runs (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    product_id text NOT NULL,
    collection_id uuid NOT NULL,
    pack_file_id uuid NOT NULL,
    batch_id text NOT NULL,
    plan jsonb NOT NULL,
    state text NOT NULL DEFAULT 'pending',
    version bigint NOT NULL DEFAULT 1,
    attempt_token uuid,
    attempt_number integer NOT NULL DEFAULT 0,
    cancel_requested boolean NOT NULL DEFAULT false,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    ended_at timestamptz,
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
    CONSTRAINT runs_pkey PRIMARY KEY (id),
    CONSTRAINT runs_owner_id UNIQUE (owner, id),
    CONSTRAINT runs_collection FOREIGN KEY (owner, collection_id) REFERENCES collections (owner, id),
    CONSTRAINT runs_pack_file FOREIGN KEY (owner, pack_file_id) REFERENCES tech_files (owner, id),
    CONSTRAINT runs_state CHECK (state IN (
        'pending', 'processing', 'completed', 'completed_with_failures', 'failed', 'cancelled')),
    CONSTRAINT runs_wait CHECK ((waits_for = '') = (waiting_since IS NULL))
);
CREATE INDEX runs_waiting ON runs (waiting_since) WHERE waiting_since IS NOT NULL;
CREATE INDEX runs_list ON runs (owner, created_at DESC, id DESC);
CREATE INDEX runs_list_product ON runs (owner, product_id, created_at DESC, id DESC);

-- The moves of a run's steps, in order. Rows are only added: the last row of a name has that step's
-- current state.
CREATE TABLE run_steps (
    id uuid NOT NULL,
    owner text NOT NULL,
    run_id uuid NOT NULL,
    name text NOT NULL,
    state text NOT NULL,
    credits bigint NOT NULL DEFAULT 0,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    analysis_id text NOT NULL DEFAULT '',
    generation_id text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT run_steps_pkey PRIMARY KEY (id),
    CONSTRAINT run_steps_state CHECK (state IN ('pending', 'processing', 'completed', 'failed', 'skipped')),
    CONSTRAINT run_steps_run FOREIGN KEY (owner, run_id) REFERENCES runs (owner, id)
);
CREATE INDEX run_steps_run_id ON run_steps (run_id, created_at, id);
-- A step ends once.
CREATE UNIQUE INDEX run_steps_end ON run_steps (run_id, name) WHERE state IN ('completed', 'failed', 'skipped');

ALTER TABLE slots ENABLE ROW LEVEL SECURITY;
ALTER TABLE slots FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON slots TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE collections ENABLE ROW LEVEL SECURITY;
ALTER TABLE collections FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON collections TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE exports ENABLE ROW LEVEL SECURITY;
ALTER TABLE exports FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON exports TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker reads a job's owner from the job's row.
CREATE POLICY claiming ON exports FOR SELECT TO techfiles_worker USING (true);

ALTER TABLE tech_files ENABLE ROW LEVEL SECURITY;
ALTER TABLE tech_files FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON tech_files TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE tech_file_versions ENABLE ROW LEVEL SECURITY;
ALTER TABLE tech_file_versions FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON tech_file_versions TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE collection_items ENABLE ROW LEVEL SECURITY;
ALTER TABLE collection_items FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON collection_items TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE collection_changes ENABLE ROW LEVEL SECURITY;
ALTER TABLE collection_changes FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON collection_changes TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE runs ENABLE ROW LEVEL SECURITY;
ALTER TABLE runs FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON runs TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker reads a job's owner from the job's row.
CREATE POLICY claiming ON runs FOR SELECT TO techfiles_worker USING (true);

ALTER TABLE run_steps ENABLE ROW LEVEL SECURITY;
ALTER TABLE run_steps FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON run_steps TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
