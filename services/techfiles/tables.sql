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
    -- Where facts come from, by the fact's path; see GetCollectionResponse.fact_sources.
    fact_sources jsonb NOT NULL DEFAULT '{}',
    archived_at timestamptz,
    -- In the trash: since when, and when it is purged.
    deleted_at timestamptz,
    expires_at timestamptz,
    -- The version of `facts`, and who stated it and when; empty and NULL: as the collection was
    -- created. Earlier versions are in collection_facts.
    facts_number integer NOT NULL DEFAULT 1,
    facts_by text NOT NULL DEFAULT '',
    facts_reason text NOT NULL DEFAULT '',
    facts_at timestamptz,
    CONSTRAINT collections_pkey PRIMARY KEY (id),
    CONSTRAINT collections_owner_id UNIQUE (owner, id),
    CONSTRAINT collections_type CHECK (
        collection_type IN ('tech_pack_v2', 'base_views_set', 'sketches_set', 'closeups_set')),
    CONSTRAINT collections_progress CHECK (progress_override BETWEEN 0 AND 100),
    CONSTRAINT collections_state CHECK (state_override IN ('', 'pending', 'processing', 'completed', 'failed')),
    CONSTRAINT collections_trash CHECK ((deleted_at IS NULL) = (expires_at IS NULL))
);
CREATE INDEX collections_list ON collections (owner, created_at DESC, id DESC);
CREATE INDEX collections_expire ON collections (expires_at, id) WHERE expires_at IS NOT NULL;
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
    -- A run filled the collection while the export was made.
    incomplete boolean NOT NULL DEFAULT false,
    -- In the trash: since when, and when it is purged.
    deleted_at timestamptz,
    expires_at timestamptz,
    ended_at timestamptz,
    -- When and why the bytes were removed: 'retention', or 'lost' if the store didn't have them.
    bytes_gone_at timestamptz,
    bytes_gone_reason text NOT NULL DEFAULT '',
    -- The release whose document it is; see `releases`. `draft`: it is stamped as one.
    release_id uuid,
    draft boolean NOT NULL DEFAULT false,
    -- The most pixels on the longer side of a picture in a ZIP; 0: the originals.
    picture_pixels integer NOT NULL DEFAULT 0,
    CONSTRAINT exports_pkey PRIMARY KEY (id),
    CONSTRAINT exports_owner_id UNIQUE (owner, id),
    CONSTRAINT exports_collection FOREIGN KEY (owner, collection_id) REFERENCES collections (owner, id),
    CONSTRAINT exports_format CHECK (format IN ('pdf', 'zip')),
    CONSTRAINT exports_state CHECK (state IN ('pending', 'processing', 'completed', 'failed')),
    -- A completed export has bytes.
    CONSTRAINT exports_completed_has_bytes CHECK (state <> 'completed' OR (storage_key <> '' AND sha256 <> '')),
    CONSTRAINT exports_wait CHECK ((waits_for = '') = (waiting_since IS NULL)),
    CONSTRAINT exports_trash CHECK ((deleted_at IS NULL) = (expires_at IS NULL)),
    CONSTRAINT exports_gone_reason CHECK (bytes_gone_reason IN ('', 'retention', 'lost')),
    CONSTRAINT exports_gone CHECK ((bytes_gone_at IS NULL) = (bytes_gone_reason = '')),
    CONSTRAINT exports_draft CHECK (NOT draft OR release_id IS NOT NULL)
);
CREATE INDEX exports_waiting ON exports (waiting_since) WHERE waiting_since IS NOT NULL;
CREATE INDEX exports_list ON exports (owner, created_at DESC, id DESC);
CREATE INDEX exports_expire ON exports (expires_at, id) WHERE expires_at IS NOT NULL;
CREATE INDEX exports_stored ON exports (owner, size_bytes) WHERE state = 'completed' AND bytes_gone_at IS NULL;
CREATE INDEX exports_unfinished ON exports (owner) WHERE state IN ('pending', 'processing');
CREATE INDEX exports_retained ON exports (coalesce(ended_at, created_at), id) WHERE state = 'completed' AND bytes_gone_at IS NULL AND release_id IS NULL;
CREATE INDEX exports_release_id ON exports (release_id) WHERE release_id IS NOT NULL;
CREATE INDEX exports_key ON exports (storage_key COLLATE "C") WHERE storage_key <> '';
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
    -- 'legacy': the analysis was taken from an older application's table.
    origin text NOT NULL DEFAULT '',
    -- In the trash: since when, and when it is purged.
    deleted_at timestamptz,
    expires_at timestamptz,
    -- Whether the file that was the slot's latest before this one was purged.
    parent_purged boolean NOT NULL DEFAULT false,
    -- The number of the version that the file restored, and why.
    restored_from integer,
    restore_reason text NOT NULL DEFAULT '',
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
    CONSTRAINT tech_files_latest_is_live CHECK (NOT is_latest OR (archived_at IS NULL AND deleted_at IS NULL)),
    CONSTRAINT tech_files_origin CHECK (origin IN ('', 'legacy')),
    CONSTRAINT tech_files_trash CHECK ((deleted_at IS NULL) = (expires_at IS NULL))
);
-- One latest file per slot.
CREATE UNIQUE INDEX tech_files_latest ON tech_files (slot_id) WHERE is_latest;
CREATE INDEX tech_files_list ON tech_files (owner, created_at DESC, id DESC);
CREATE INDEX tech_files_expire ON tech_files (expires_at, id) WHERE expires_at IS NOT NULL;
CREATE INDEX tech_files_archived ON tech_files (archived_at, id) WHERE archived_at IS NOT NULL AND deleted_at IS NULL;
CREATE INDEX tech_files_picture ON tech_files (owner, file_asset_id) WHERE file_asset_id IS NOT NULL;
CREATE INDEX tech_files_parent_id ON tech_files (parent_file_id) WHERE parent_file_id IS NOT NULL;
CREATE INDEX tech_files_export_id ON tech_files (export_id) WHERE export_id IS NOT NULL;
CREATE INDEX tech_files_collection_id ON tech_files (collection_id) WHERE collection_id IS NOT NULL;
CREATE INDEX tech_files_list_state ON tech_files (owner, state, created_at DESC, id DESC);
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
    -- The SHA-256 of the snapshot's text, taken when it was written; '' in rows from before that.
    sha256 text NOT NULL DEFAULT '',
    CONSTRAINT tech_file_versions_pkey PRIMARY KEY (id),
    CONSTRAINT tech_file_versions_number UNIQUE (slot_id, number),
    CONSTRAINT tech_file_versions_file FOREIGN KEY (owner, tech_file_id) REFERENCES tech_files (owner, id)
);

CREATE INDEX tech_file_versions_file_id ON tech_file_versions (tech_file_id);

-- The numbers of purged files: a slot gives no number twice, and these are no gaps.
CREATE TABLE purged_numbers (
    owner text NOT NULL,
    slot_id uuid NOT NULL,
    number integer NOT NULL,
    tech_file_id uuid NOT NULL,
    purged_by text NOT NULL,
    purged_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT purged_numbers_pkey PRIMARY KEY (slot_id, number),
    CONSTRAINT purged_numbers_slot FOREIGN KEY (owner, slot_id) REFERENCES slots (owner, id)
);

-- Facts that a collection had under earlier numbers. Rows are only added.
CREATE TABLE collection_facts (
    id uuid NOT NULL,
    owner text NOT NULL,
    collection_id uuid NOT NULL,
    number integer NOT NULL,
    facts jsonb NOT NULL,
    created_by text NOT NULL,
    reason text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL,
    -- As collections.fact_sources.
    sources jsonb NOT NULL DEFAULT '{}',
    CONSTRAINT collection_facts_pkey PRIMARY KEY (id),
    CONSTRAINT collection_facts_number UNIQUE (collection_id, number),
    CONSTRAINT collection_facts_collection FOREIGN KEY (owner, collection_id) REFERENCES collections (owner, id)
);

-- Objects that no row points at any more. They are noted in the transaction that removes the rows,
-- so that a crash can't lose them; a worker removes the objects, then these rows.
CREATE TABLE doomed_objects (
    seq bigint GENERATED ALWAYS AS IDENTITY,
    owner text NOT NULL,
    storage_key text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT doomed_objects_pkey PRIMARY KEY (seq)
);
CREATE INDEX doomed_objects_key ON doomed_objects (storage_key COLLATE "C");

-- Pictures that something purged of a product had. A worker releases the product's reference to each
-- that nothing else of the product has, and looks once more at `settles_at`: a call that acquired it
-- meanwhile has made its row by then. A look that took a reference away is followed by another one.
CREATE TABLE picture_releases (
    id uuid NOT NULL,
    owner text NOT NULL,
    product_id text NOT NULL,
    asset_id uuid NOT NULL,
    due_at timestamptz NOT NULL DEFAULT now(),
    settles_at timestamptz NOT NULL,
    CONSTRAINT picture_releases_pkey PRIMARY KEY (id),
    CONSTRAINT picture_releases_picture UNIQUE (owner, product_id, asset_id)
);
CREATE INDEX picture_releases_due ON picture_releases (due_at, id);

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
    -- It may be purged before the run.
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
    -- The product of `pipeline` that facts and pictures came from; NULL: none.
    source_product_id uuid,
    -- Only outside workers do the jobs of the run.
    run_externally boolean NOT NULL DEFAULT false,
    -- A ZIP is made after the PDF: `zip_export_id`, once that is begun.
    make_zip boolean NOT NULL DEFAULT false,
    zip_export_id uuid,
    -- The current try is number `round`; a retry begins the next one at `resumed_at`, and adds what
    -- the earlier ones took to `spent_ms`.
    round integer NOT NULL DEFAULT 1,
    resumed_at timestamptz,
    spent_ms bigint NOT NULL DEFAULT 0,
    -- In the trash: since when, and when it is purged.
    deleted_at timestamptz,
    expires_at timestamptz,
    CONSTRAINT runs_pkey PRIMARY KEY (id),
    CONSTRAINT runs_owner_id UNIQUE (owner, id),
    CONSTRAINT runs_collection FOREIGN KEY (owner, collection_id) REFERENCES collections (owner, id),
    CONSTRAINT runs_state CHECK (state IN (
        'pending', 'processing', 'completed', 'completed_with_failures', 'failed', 'cancelled')),
    CONSTRAINT runs_wait CHECK ((waits_for = '') = (waiting_since IS NULL)),
    CONSTRAINT runs_trash CHECK ((deleted_at IS NULL) = (expires_at IS NULL))
);
CREATE INDEX runs_waiting ON runs (waiting_since) WHERE waiting_since IS NOT NULL;
CREATE INDEX runs_list ON runs (owner, created_at DESC, id DESC);
CREATE INDEX runs_expire ON runs (expires_at, id) WHERE expires_at IS NOT NULL;
CREATE INDEX runs_collection_id ON runs (collection_id);
CREATE INDEX runs_open ON runs (owner) WHERE state IN ('pending', 'processing');
CREATE INDEX runs_list_product ON runs (owner, product_id, created_at DESC, id DESC);
CREATE INDEX runs_list_state ON runs (owner, state, created_at DESC, id DESC);
CREATE INDEX runs_list_collection ON runs (owner, collection_id, created_at DESC, id DESC);

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
    -- The run's try that the move belongs to.
    round integer NOT NULL DEFAULT 1,
    -- The part of `credits` that jobs of earlier tries cost which the step doesn't use any more.
    earlier_credits bigint NOT NULL DEFAULT 0,
    CONSTRAINT run_steps_pkey PRIMARY KEY (id),
    CONSTRAINT run_steps_state CHECK (state IN ('pending', 'processing', 'completed', 'failed', 'skipped')),
    CONSTRAINT run_steps_run FOREIGN KEY (owner, run_id) REFERENCES runs (owner, id)
);
CREATE INDEX run_steps_run_id ON run_steps (run_id, created_at, id);
-- A step ends once in a try.
CREATE UNIQUE INDEX run_steps_end ON run_steps (run_id, name, round) WHERE state IN ('completed', 'failed', 'skipped');

ALTER TABLE slots ENABLE ROW LEVEL SECURITY;
ALTER TABLE slots FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON slots TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker finds the slots that a check is to examine, of every owner.
CREATE POLICY checking ON slots FOR SELECT TO techfiles_worker USING (true);

ALTER TABLE collections ENABLE ROW LEVEL SECURITY;
ALTER TABLE collections FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON collections TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker finds what is to be purged, of every owner.
CREATE POLICY keeping ON collections FOR SELECT TO techfiles_worker USING (true);

ALTER TABLE exports ENABLE ROW LEVEL SECURITY;
ALTER TABLE exports FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON exports TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- An operator reads across owners in transactions that set app.operator.
CREATE POLICY operating ON exports FOR SELECT TO techfiles_app USING ((SELECT current_setting('app.operator', true) = 'on'));
-- A worker reads a job's owner from the job's row.
CREATE POLICY claiming ON exports FOR SELECT TO techfiles_worker USING (true);

ALTER TABLE tech_files ENABLE ROW LEVEL SECURITY;
ALTER TABLE tech_files FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON tech_files TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker finds what is to be deleted or purged, of every owner.
CREATE POLICY keeping ON tech_files FOR SELECT TO techfiles_worker USING (true);

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

ALTER TABLE purged_numbers ENABLE ROW LEVEL SECURITY;
ALTER TABLE purged_numbers FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON purged_numbers TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE collection_facts ENABLE ROW LEVEL SECURITY;
ALTER TABLE collection_facts FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON collection_facts TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE doomed_objects ENABLE ROW LEVEL SECURITY;
ALTER TABLE doomed_objects FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON doomed_objects TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY removing ON doomed_objects TO techfiles_worker USING (true);
CREATE POLICY operating ON doomed_objects FOR SELECT TO techfiles_app USING ((SELECT current_setting('app.operator', true) = 'on'));

ALTER TABLE picture_releases ENABLE ROW LEVEL SECURITY;
ALTER TABLE picture_releases FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON picture_releases TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY settling ON picture_releases FOR SELECT TO techfiles_worker USING (true);

-- Every table that a call or a run adds to refuses rows of an erased owner.
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON slots
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON collections
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON exports
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON tech_files
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON tech_file_versions
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON collection_items
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON collection_changes
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON runs
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON run_steps
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();

-- Whether finished analyses of base views are written to an older application's table, too: a row says so. Workers keep
-- it as the settings say.
CREATE TABLE legacy_switch (
    one boolean NOT NULL DEFAULT true,
    since timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT legacy_switch_pkey PRIMARY KEY (one),
    CONSTRAINT legacy_switch_one CHECK (one)
);
ALTER TABLE legacy_switch ENABLE ROW LEVEL SECURITY;
ALTER TABLE legacy_switch FORCE ROW LEVEL SECURITY;
CREATE POLICY reading ON legacy_switch FOR SELECT TO techfiles_app USING (true);
CREATE POLICY switching ON legacy_switch TO techfiles_worker USING (true);

-- Tech files whose analysis is to be written to that table. The row leaves when it is written.
CREATE TABLE legacy_writes (
    tech_file_id uuid NOT NULL,
    owner text NOT NULL,
    -- A change of the file asks anew; what was written of the file before that doesn't count.
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    since timestamptz NOT NULL DEFAULT now(),
    next_at timestamptz NOT NULL DEFAULT now(),
    attempts integer NOT NULL DEFAULT 0,
    problem text NOT NULL DEFAULT '',
    CONSTRAINT legacy_writes_pkey PRIMARY KEY (tech_file_id),
    CONSTRAINT legacy_writes_file FOREIGN KEY (owner, tech_file_id) REFERENCES tech_files (owner, id) ON DELETE CASCADE
);
CREATE INDEX legacy_writes_next ON legacy_writes (next_at);
ALTER TABLE legacy_writes ENABLE ROW LEVEL SECURITY;
ALTER TABLE legacy_writes FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON legacy_writes TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY operating ON legacy_writes FOR SELECT TO techfiles_app
    USING (starts_with(current_setting('app.owner_id', true), 'admin:'));
CREATE POLICY writing ON legacy_writes FOR SELECT TO techfiles_worker USING (true);

CREATE FUNCTION ask_for_legacy_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM techfiles.legacy_switch) THEN
        INSERT INTO techfiles.legacy_writes (tech_file_id, owner) VALUES (NEW.id, NEW.owner)
        ON CONFLICT (tech_file_id) DO UPDATE
            SET asked_at = clock_timestamp(), next_at = now(), attempts = 0, problem = '';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER ask_for_legacy_write AFTER INSERT ON tech_files FOR EACH ROW
    WHEN (NEW.file_type = 'base_view' AND NEW.state = 'completed' AND NEW.analysis IS NOT NULL AND NEW.origin = '')
    EXECUTE FUNCTION ask_for_legacy_write();
CREATE TRIGGER ask_for_legacy_rewrite AFTER UPDATE OF state, analysis ON tech_files FOR EACH ROW
    WHEN (NEW.file_type = 'base_view' AND NEW.state = 'completed' AND NEW.analysis IS NOT NULL AND NEW.origin = ''
        AND (OLD.state <> 'completed' OR OLD.analysis IS DISTINCT FROM NEW.analysis))
    EXECUTE FUNCTION ask_for_legacy_write();

-- Walks over an older application's table, which make tech files of its rows. `reached`: the id of the last row that was
-- looked at.
CREATE TABLE legacy_backfills (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    dry_run boolean NOT NULL,
    state text NOT NULL DEFAULT 'pending',
    version bigint NOT NULL DEFAULT 1,
    attempt_token uuid,
    attempt_number integer NOT NULL DEFAULT 0,
    cancel_requested boolean NOT NULL DEFAULT false,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    reached text,
    total bigint,
    examined bigint NOT NULL DEFAULT 0,
    made bigint NOT NULL DEFAULT 0,
    archived bigint NOT NULL DEFAULT 0,
    present bigint NOT NULL DEFAULT 0,
    erased bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    failures jsonb NOT NULL DEFAULT '[]',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Attempts that ended in a fault, and in a loss, since the job last made progress.
    faults integer NOT NULL DEFAULT 0,
    losses integer NOT NULL DEFAULT 0,
    -- What the job waits for, away or full, and since when; see shared/background/attempts.py.
    waits_for text NOT NULL DEFAULT '',
    waiting_since timestamptz,
    CONSTRAINT legacy_backfills_pkey PRIMARY KEY (id),
    CONSTRAINT legacy_backfills_state CHECK (state IN ('pending', 'running', 'done', 'failed', 'cancelled')),
    CONSTRAINT legacy_backfills_wait CHECK ((waits_for = '') = (waiting_since IS NULL))
);
CREATE INDEX legacy_backfills_waiting ON legacy_backfills (waiting_since) WHERE waiting_since IS NOT NULL;
-- One backfill at a time: two would make a row's tech file twice.
CREATE UNIQUE INDEX legacy_backfills_one ON legacy_backfills ((true)) WHERE state IN ('pending', 'running');
CREATE INDEX legacy_backfills_list ON legacy_backfills (created_at DESC, id DESC);
ALTER TABLE legacy_backfills ENABLE ROW LEVEL SECURITY;
ALTER TABLE legacy_backfills FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON legacy_backfills TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- Operators see and cancel each other's backfills.
CREATE POLICY operating ON legacy_backfills TO techfiles_app
    USING (starts_with(current_setting('app.owner_id', true), 'admin:'));
CREATE POLICY walking ON legacy_backfills TO techfiles_worker USING (true);
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON legacy_backfills
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON purged_numbers
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON collection_facts
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON doomed_objects
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON picture_releases
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();

-- Walks over slots that look for faults of their histories. `reached_...`: the last slot that was
-- examined, in the order (owner, id).
CREATE TABLE history_checks (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    all_owners boolean NOT NULL,
    record_digests boolean NOT NULL,
    state text NOT NULL DEFAULT 'pending',
    version bigint NOT NULL DEFAULT 1,
    attempt_token uuid,
    attempt_number integer NOT NULL DEFAULT 0,
    cancel_requested boolean NOT NULL DEFAULT false,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    reached_owner text NOT NULL DEFAULT '',
    reached_slot uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    total_slots bigint,
    examined_slots bigint NOT NULL DEFAULT 0,
    examined_rows bigint NOT NULL DEFAULT 0,
    findings bigint NOT NULL DEFAULT 0,
    uncheckable bigint NOT NULL DEFAULT 0,
    recorded bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Attempts that ended in a fault, and in a loss, since the job last made progress.
    faults integer NOT NULL DEFAULT 0,
    losses integer NOT NULL DEFAULT 0,
    -- What the job waits for, away or full, and since when; see shared/background/attempts.py.
    waits_for text NOT NULL DEFAULT '',
    waiting_since timestamptz,
    CONSTRAINT history_checks_pkey PRIMARY KEY (id),
    CONSTRAINT history_checks_state CHECK (state IN ('pending', 'running', 'done', 'failed', 'cancelled')),
    CONSTRAINT history_checks_wait CHECK ((waits_for = '') = (waiting_since IS NULL))
);
CREATE INDEX history_checks_waiting ON history_checks (waiting_since) WHERE waiting_since IS NOT NULL;
-- One check of an owner at a time, and one of all owners: the later findings replace the earlier.
CREATE UNIQUE INDEX history_checks_one ON history_checks (owner) WHERE state IN ('pending', 'running');
CREATE UNIQUE INDEX history_checks_one_of_all ON history_checks (all_owners)
    WHERE state IN ('pending', 'running') AND all_owners;
CREATE INDEX history_checks_list ON history_checks (owner, created_at DESC, id DESC);
CREATE INDEX history_checks_list_all ON history_checks (created_at DESC, id DESC);
ALTER TABLE history_checks ENABLE ROW LEVEL SECURITY;
ALTER TABLE history_checks FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON history_checks TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- Operators see and cancel the checks of everybody.
CREATE POLICY operating ON history_checks TO techfiles_app
    USING (starts_with(current_setting('app.owner_id', true), 'admin:'));
CREATE POLICY walking ON history_checks TO techfiles_worker USING (true);
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON history_checks
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();

-- One kind of fault in one slot. A finding belongs to the owner of the slot, and may outlive the
-- check, which may be an operator's. `repair`: what a repair writes, or has written.
CREATE TABLE history_findings (
    id uuid NOT NULL,
    owner text NOT NULL,
    check_id uuid NOT NULL,
    slot_id uuid NOT NULL,
    product_id text NOT NULL,
    file_type text NOT NULL,
    view_type text NOT NULL,
    file_category text NOT NULL,
    fault text NOT NULL,
    state text NOT NULL DEFAULT 'open',
    message text NOT NULL,
    advice text NOT NULL,
    repair jsonb NOT NULL DEFAULT '[]',
    repaired_by text NOT NULL DEFAULT '',
    repaired_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT history_findings_pkey PRIMARY KEY (id),
    CONSTRAINT history_findings_slot FOREIGN KEY (owner, slot_id) REFERENCES slots (owner, id),
    CONSTRAINT history_findings_fault CHECK (fault IN (
        'missing_numbers', 'repeated_numbers', 'last_number_low', 'several_latest', 'no_latest',
        'wrong_latest', 'missing_parent', 'foreign_parent', 'changed_snapshot', 'same_name')),
    CONSTRAINT history_findings_state CHECK (state IN ('open', 'superseded', 'repaired')),
    CONSTRAINT history_findings_repaired CHECK ((state = 'repaired') = (repaired_at IS NOT NULL))
);
CREATE UNIQUE INDEX history_findings_open ON history_findings (slot_id, fault) WHERE state = 'open';
CREATE INDEX history_findings_slot_id ON history_findings (slot_id);
CREATE INDEX history_findings_list_state ON history_findings (owner, state, created_at DESC, id DESC);
CREATE INDEX history_findings_list_check ON history_findings (check_id, state, created_at DESC, id DESC);
ALTER TABLE history_findings ENABLE ROW LEVEL SECURITY;
ALTER TABLE history_findings FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON history_findings TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY operating ON history_findings FOR SELECT TO techfiles_app
    USING (starts_with(current_setting('app.owner_id', true), 'admin:'));
-- A worker counts the open findings of all owners for the metrics.
CREATE POLICY counting ON history_findings FOR SELECT TO techfiles_worker USING (state = 'open');
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON history_findings
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();

-- Releases: what a collection held at one moment, under a name. What they froze is in
-- release_contents and release_files, whose rows are only added.
CREATE TABLE releases (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    product_id text NOT NULL,
    collection_id uuid NOT NULL,
    name text NOT NULL,
    note text NOT NULL DEFAULT '',
    state text NOT NULL DEFAULT 'draft',
    -- Given by an approval, without gaps among the releases of a product.
    number integer,
    -- The approved release that it is compared with; NULL: it is the product's first.
    previous_id uuid,
    previous_number integer,
    facts_number integer NOT NULL,
    file_count integer NOT NULL,
    -- The product of `pipeline` that facts and pictures came from; NULL: none.
    source_product_id uuid,
    nothing_merely_found boolean NOT NULL DEFAULT false,
    -- What only a model says, the first of merely_found_count values.
    merely_found jsonb NOT NULL DEFAULT '[]',
    merely_found_count integer NOT NULL DEFAULT 0,
    decided_by text NOT NULL DEFAULT '',
    decision_note text NOT NULL DEFAULT '',
    decided_at timestamptz,
    withdrawn_by text NOT NULL DEFAULT '',
    withdraw_reason text NOT NULL DEFAULT '',
    withdrawn_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- In the trash: since when, and when it is purged.
    deleted_at timestamptz,
    expires_at timestamptz,
    CONSTRAINT releases_pkey PRIMARY KEY (id),
    CONSTRAINT releases_owner_id UNIQUE (owner, id),
    CONSTRAINT releases_number UNIQUE (owner, product_id, number),
    CONSTRAINT releases_collection FOREIGN KEY (owner, collection_id) REFERENCES collections (owner, id),
    CONSTRAINT releases_previous FOREIGN KEY (owner, previous_id) REFERENCES releases (owner, id),
    CONSTRAINT releases_state CHECK (state IN ('draft', 'approved', 'rejected', 'withdrawn')),
    CONSTRAINT releases_numbered CHECK ((number IS NOT NULL) = (state IN ('approved', 'withdrawn'))),
    CONSTRAINT releases_decided CHECK ((decided_at IS NULL) = (state = 'draft')),
    CONSTRAINT releases_withdrawn CHECK ((withdrawn_at IS NOT NULL) = (state = 'withdrawn')),
    CONSTRAINT releases_trash CHECK ((deleted_at IS NULL) = (expires_at IS NULL)),
    CONSTRAINT releases_kept CHECK (deleted_at IS NULL OR state <> 'approved')
);
CREATE INDEX releases_list ON releases (owner, created_at DESC, id DESC);
CREATE INDEX releases_list_product ON releases (owner, product_id, created_at DESC, id DESC);
CREATE INDEX releases_collection_id ON releases (collection_id);
CREATE INDEX releases_previous_id ON releases (previous_id) WHERE previous_id IS NOT NULL;
CREATE INDEX releases_expire ON releases (expires_at, id) WHERE expires_at IS NOT NULL;

-- The last number that a release of a product got. An approval or a withdrawal locks the row.
CREATE TABLE release_numbers (
    owner text NOT NULL,
    product_id text NOT NULL,
    last_number integer NOT NULL,
    CONSTRAINT release_numbers_pkey PRIMARY KEY (owner, product_id)
);

-- The row of the collection as a release froze it, with its facts, as JSON.
CREATE TABLE release_contents (
    release_id uuid NOT NULL,
    owner text NOT NULL,
    collection jsonb NOT NULL,
    CONSTRAINT release_contents_pkey PRIMARY KEY (release_id),
    CONSTRAINT release_contents_release FOREIGN KEY (owner, release_id) REFERENCES releases (owner, id)
);

-- The files as a release froze them, in their order: whole rows, as JSON.
CREATE TABLE release_files (
    release_id uuid NOT NULL,
    owner text NOT NULL,
    position integer NOT NULL,
    tech_file_id uuid NOT NULL,
    product_id text NOT NULL,
    file_type text NOT NULL,
    view_type text NOT NULL,
    file_category text NOT NULL,
    number integer NOT NULL,
    section text NOT NULL,
    asset_id uuid,
    asset_sha256 text NOT NULL DEFAULT '',
    generation_id text NOT NULL DEFAULT '',
    analysis_id text NOT NULL DEFAULT '',
    snapshot jsonb NOT NULL,
    CONSTRAINT release_files_pkey PRIMARY KEY (release_id, position),
    CONSTRAINT release_files_release FOREIGN KEY (owner, release_id) REFERENCES releases (owner, id),
    CONSTRAINT release_files_picture CHECK ((asset_id IS NULL) = (asset_sha256 = ''))
);
CREATE INDEX release_files_asset ON release_files (owner, asset_id) WHERE asset_id IS NOT NULL;

ALTER TABLE exports ADD CONSTRAINT exports_release FOREIGN KEY (owner, release_id) REFERENCES releases (owner, id);

ALTER TABLE releases ENABLE ROW LEVEL SECURITY;
ALTER TABLE releases FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON releases TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker finds what is to be purged, of every owner.
CREATE POLICY keeping ON releases FOR SELECT TO techfiles_worker USING (true);

ALTER TABLE release_numbers ENABLE ROW LEVEL SECURITY;
ALTER TABLE release_numbers FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON release_numbers TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE release_contents ENABLE ROW LEVEL SECURITY;
ALTER TABLE release_contents FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON release_contents TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE release_files ENABLE ROW LEVEL SECURITY;
ALTER TABLE release_files FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON release_files TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON releases
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON release_numbers
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON release_contents
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON release_files
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
