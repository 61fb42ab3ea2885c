-- The schema of `assets`, with its policies. Common tables (requests, events, event_stream, attempts) stand in
-- shared/tables.sql. A migration changes both this file and the database; a test compares them.

-- A file. PENDING until its bytes are verified; then immutable but for what its owner says about it.
CREATE TABLE assets (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    kind text NOT NULL,
    state text NOT NULL DEFAULT 'pending',
    version bigint NOT NULL DEFAULT 1,
    public boolean NOT NULL,
    free boolean NOT NULL,
    file_name text NOT NULL,
    storage_key text NOT NULL DEFAULT '',
    size_bytes bigint NOT NULL,
    mime_type text NOT NULL,
    width integer NOT NULL DEFAULT 0,
    height integer NOT NULL DEFAULT 0,
    sha256 text NOT NULL DEFAULT '',
    tags text[] NOT NULL DEFAULT '{}',
    metadata jsonb NOT NULL DEFAULT '{}',
    session_id text NOT NULL DEFAULT '',
    room_id text NOT NULL DEFAULT '',
    product_id text NOT NULL DEFAULT '',
    dataset_id text NOT NULL DEFAULT '',
    is_primary boolean NOT NULL DEFAULT false,
    facts jsonb,
    provenance jsonb,
    rejection text NOT NULL DEFAULT '',
    rejection_message text NOT NULL DEFAULT '',
    -- Hidden from lists, kept.
    archived_at timestamptz,
    -- In the trash; gone with its bytes after expires_at.
    deleted_at timestamptz,
    expires_at timestamptz,
    -- In the trash: undelete makes it public again. Meanwhile it is private, and so are its objects.
    hidden_public boolean NOT NULL DEFAULT false,
    -- The store was found to have lost or damaged its bytes.
    bytes_gone_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT assets_pkey PRIMARY KEY (id),
    CONSTRAINT assets_owner_id UNIQUE (owner, id),
    CONSTRAINT assets_state CHECK (state IN ('pending', 'ready', 'rejected')),
    CONSTRAINT assets_kind CHECK (kind IN (
        'photo', 'floorplan', 'document', 'render', 'user', 'cloth', 'result', 'product', 'reference', 'style',
        'logo', 'dataset', 'generated', 'closeup', 'sketch', 'export')),
    -- Never READY without bytes.
    CONSTRAINT assets_ready_has_bytes CHECK (state <> 'ready' OR (storage_key <> '' AND sha256 <> '')),
    CONSTRAINT assets_rejected_has_reason CHECK ((state = 'rejected') = (rejection <> '')),
    CONSTRAINT assets_trash_expires CHECK ((deleted_at IS NULL) = (expires_at IS NULL)),
    CONSTRAINT assets_hidden_public CHECK (NOT hidden_public OR (deleted_at IS NOT NULL AND NOT public))
);
CREATE INDEX assets_list ON assets (owner, state, created_at DESC, id DESC);
CREATE INDEX assets_list_kind ON assets (owner, kind, state, created_at DESC, id DESC);
CREATE INDEX assets_list_product ON assets (owner, product_id, created_at DESC, id DESC) WHERE product_id <> '';
CREATE INDEX assets_list_session ON assets (owner, session_id, created_at DESC, id DESC) WHERE session_id <> '';
CREATE INDEX assets_list_dataset ON assets (owner, dataset_id, created_at DESC, id DESC) WHERE dataset_id <> '';
CREATE INDEX assets_public ON assets (created_at DESC, id DESC) WHERE public AND state = 'ready' AND deleted_at IS NULL;
-- One primary image per product.
CREATE UNIQUE INDEX assets_primary ON assets (owner, product_id) WHERE is_primary;

-- A promise of bytes, and where they may be sent. One per asset.
CREATE TABLE uploads (
    id uuid NOT NULL,
    owner text NOT NULL,
    asset_id uuid NOT NULL,
    upload_key text NOT NULL,
    declared_sha256 text NOT NULL DEFAULT '',
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT uploads_pkey PRIMARY KEY (id),
    CONSTRAINT uploads_asset FOREIGN KEY (owner, asset_id) REFERENCES assets (owner, id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX uploads_asset_id ON uploads (asset_id);
CREATE INDEX uploads_expiry ON uploads (expires_at);

-- A smaller form of an image: one row, and so one run, per (asset, preset).
CREATE TABLE variants (
    id uuid NOT NULL,
    owner text NOT NULL,
    asset_id uuid NOT NULL,
    preset text NOT NULL,
    state text NOT NULL DEFAULT 'pending',
    version bigint NOT NULL DEFAULT 1,
    storage_key text NOT NULL DEFAULT '',
    mime_type text NOT NULL DEFAULT '',
    width integer NOT NULL DEFAULT 0,
    height integer NOT NULL DEFAULT 0,
    size_bytes bigint NOT NULL DEFAULT 0,
    sha256 text NOT NULL DEFAULT '',
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT variants_pkey PRIMARY KEY (id),
    CONSTRAINT variants_asset FOREIGN KEY (owner, asset_id) REFERENCES assets (owner, id) ON DELETE CASCADE,
    CONSTRAINT variants_state CHECK (state IN ('pending', 'processing', 'ready', 'failed')),
    CONSTRAINT variants_ready_has_bytes CHECK (state <> 'ready' OR storage_key <> '')
);
CREATE UNIQUE INDEX variants_preset ON variants (asset_id, preset);

-- The job that makes an asset's pending variants, all from one decode.
CREATE TABLE renditions (
    id uuid NOT NULL,
    owner text NOT NULL,
    asset_id uuid NOT NULL,
    presets text[] NOT NULL,
    state text NOT NULL DEFAULT 'pending',
    version bigint NOT NULL DEFAULT 1,
    attempt_token uuid,
    attempt_number integer NOT NULL DEFAULT 0,
    cancel_requested boolean NOT NULL DEFAULT false,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT renditions_pkey PRIMARY KEY (id),
    CONSTRAINT renditions_asset FOREIGN KEY (owner, asset_id) REFERENCES assets (owner, id) ON DELETE CASCADE,
    CONSTRAINT renditions_state CHECK (state IN ('pending', 'running', 'done', 'failed', 'cancelled'))
);
CREATE INDEX renditions_asset_id ON renditions (asset_id);

-- Who uses an asset: kept here, so that "is it in use?" is one local question under the asset's lock.
CREATE TABLE asset_references (
    owner text NOT NULL,
    asset_id uuid NOT NULL,
    holder text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT asset_references_pkey PRIMARY KEY (asset_id, owner, holder),
    CONSTRAINT asset_references_asset FOREIGN KEY (asset_id) REFERENCES assets (id) ON DELETE CASCADE
);
CREATE INDEX asset_references_holder ON asset_references (owner, holder);

ALTER TABLE assets ENABLE ROW LEVEL SECURITY;
ALTER TABLE assets FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON assets TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY public_reading ON assets FOR SELECT TO assets_app, assets_worker 
    USING (public AND state = 'ready' AND deleted_at IS NULL);

ALTER TABLE uploads ENABLE ROW LEVEL SECURITY;
ALTER TABLE uploads FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON uploads TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE variants ENABLE ROW LEVEL SECURITY;
ALTER TABLE variants FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON variants TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A variant is as public as its asset; the subquery is under the asset's own policies.
CREATE POLICY public_reading ON variants FOR SELECT TO assets_app, assets_worker
    USING (EXISTS (SELECT FROM assets a WHERE a.id = variants.asset_id AND a.public AND a.state = 'ready'
                   AND a.deleted_at IS NULL));

ALTER TABLE renditions ENABLE ROW LEVEL SECURITY;
ALTER TABLE renditions FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON renditions TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A job's owner is read from its row.
CREATE POLICY claiming ON renditions FOR SELECT TO assets_worker USING (true);

ALTER TABLE asset_references ENABLE ROW LEVEL SECURITY;
ALTER TABLE asset_references FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON asset_references TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

-- Deleting, cleaning, erasing, reconciling.

CREATE INDEX assets_trash ON assets (expires_at, id) WHERE deleted_at IS NOT NULL;
CREATE INDEX assets_pending ON assets (created_at, id) WHERE state = 'pending';
CREATE INDEX asset_references_asset ON asset_references (asset_id, created_at DESC);
-- The reconciler walks objects and rows in the byte order of keys.
CREATE INDEX assets_storage_key ON assets (storage_key COLLATE "C") WHERE storage_key <> '';
CREATE INDEX variants_storage_key ON variants (storage_key COLLATE "C") WHERE storage_key <> '';
CREATE INDEX uploads_upload_key ON uploads (upload_key COLLATE "C");
-- Whoever owns an asset may know that it is in use, also by another owner.
CREATE POLICY asset_owner ON asset_references FOR SELECT TO assets_app, assets_worker
    USING (EXISTS (SELECT FROM assets a WHERE a.id = asset_references.asset_id
                   AND a.owner = NULLIF(current_setting('app.owner_id', true), '')));
-- Whose trash has expired, whose uploads were abandoned, whose keys are these: across owners, to read only.
CREATE POLICY keeping ON assets FOR SELECT TO assets_worker USING (true);
CREATE POLICY keeping ON uploads FOR SELECT TO assets_worker USING (true);
CREATE POLICY keeping ON variants FOR SELECT TO assets_worker USING (true);

-- Objects that no row shows any more. Written in the transaction that takes the rows away, so that a crash can't lose
-- them; a worker removes the objects, then forgets these rows.
CREATE TABLE doomed_objects (
    seq bigint GENERATED ALWAYS AS IDENTITY,
    owner text NOT NULL,
    storage_key text NOT NULL,
    -- An upload key can be written to until its URL expires.
    due_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT doomed_objects_pkey PRIMARY KEY (seq)
);
CREATE INDEX doomed_objects_due ON doomed_objects (due_at, seq);
CREATE INDEX doomed_objects_key ON doomed_objects (storage_key COLLATE "C");

-- A walk over many assets: the job, where it is, and its report. `owner` is '' if it is over all owners.
CREATE TABLE storage_runs (
    id uuid NOT NULL,
    owner text NOT NULL,
    action text NOT NULL,
    arguments jsonb NOT NULL DEFAULT '{}',
    state text NOT NULL DEFAULT 'pending',
    version bigint NOT NULL DEFAULT 1,
    attempt_token uuid,
    attempt_number integer NOT NULL DEFAULT 0,
    cancel_requested boolean NOT NULL DEFAULT false,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    progress jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT storage_runs_pkey PRIMARY KEY (id),
    CONSTRAINT storage_runs_action CHECK (action IN ('session', 'cleanup', 'reconcile', 'erase')),
    CONSTRAINT storage_runs_state CHECK (state IN ('pending', 'running', 'done', 'failed', 'cancelled'))
);
CREATE INDEX storage_runs_list ON storage_runs (owner, created_at DESC, id DESC);
-- One cleanup and one reconciler at a time, however many workers there are.
CREATE UNIQUE INDEX storage_runs_one ON storage_runs (action)
    WHERE owner = '' AND state IN ('pending', 'running');
-- One erasure per owner; its run is the receipt.
CREATE UNIQUE INDEX storage_runs_erasure ON storage_runs (owner) WHERE action = 'erase';

-- Owners for whom nothing new is kept.
CREATE TABLE erased_owners (
    owner text NOT NULL,
    erased_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT erased_owners_pkey PRIMARY KEY (owner)
);

-- Refuses rows of an erased owner. Who erases takes the same lock exclusively, so that a row which was on its way is
-- committed before the erasure begins, or refused. Every table that an owner's call adds to gets this trigger, unless
-- its rows hang on an asset.
CREATE FUNCTION refuse_erased_owner() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended(NEW.owner, 11));
    IF EXISTS (SELECT FROM assets.erased_owners e WHERE e.owner = NEW.owner) THEN
        RAISE EXCEPTION 'the owner was erased' USING ERRCODE = 'check_violation', CONSTRAINT = 'owner_not_erased';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON assets
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON asset_references
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();

ALTER TABLE doomed_objects ENABLE ROW LEVEL SECURITY;
ALTER TABLE doomed_objects FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON doomed_objects TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY removing ON doomed_objects TO assets_worker USING (true);

ALTER TABLE storage_runs ENABLE ROW LEVEL SECURITY;
ALTER TABLE storage_runs FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON storage_runs TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- Runs over all owners are nobody's; the contract shows them to operators only.
CREATE POLICY operating ON storage_runs TO assets_app USING (owner = '');
CREATE POLICY running ON storage_runs TO assets_worker USING (true);

ALTER TABLE erased_owners ENABLE ROW LEVEL SECURITY;
ALTER TABLE erased_owners FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON erased_owners TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
