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
    CONSTRAINT assets_trash_expires CHECK ((deleted_at IS NULL) = (expires_at IS NULL))
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

-- Uploads in parts, imports, duplicates.

-- Files that an owner has more than once; with the list of each hash in its order.
CREATE INDEX assets_duplicates ON assets (owner, sha256, created_at DESC, id DESC) WHERE sha256 <> '';

-- A file that comes in parts. One per asset; whether it is over is the asset's state.
CREATE TABLE resumable_uploads (
    id uuid NOT NULL,
    owner text NOT NULL,
    asset_id uuid NOT NULL,
    -- Where the parts are joined, and what the store calls them until then.
    upload_key text NOT NULL,
    multipart text NOT NULL,
    part_bytes bigint NOT NULL,
    declared_sha256 text NOT NULL DEFAULT '',
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT resumable_uploads_pkey PRIMARY KEY (id),
    CONSTRAINT resumable_uploads_asset FOREIGN KEY (owner, asset_id) REFERENCES assets (owner, id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX resumable_uploads_asset_id ON resumable_uploads (asset_id);
CREATE INDEX resumable_uploads_expiry ON resumable_uploads (expires_at);

ALTER TABLE resumable_uploads ENABLE ROW LEVEL SECURITY;
ALTER TABLE resumable_uploads FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON resumable_uploads TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- Cleanup has to know which uploads are still open.
CREATE POLICY cleaning ON resumable_uploads FOR SELECT TO assets_worker USING (true);

-- The job that fetches an asset's bytes from a URL. What is behind its `?` may be a secret, and goes when the job ends.
CREATE TABLE imports (
    id uuid NOT NULL,
    owner text NOT NULL,
    asset_id uuid NOT NULL,
    url text NOT NULL,
    declared_sha256 text NOT NULL DEFAULT '',
    state text NOT NULL DEFAULT 'pending',
    version bigint NOT NULL DEFAULT 1,
    attempt_token uuid,
    attempt_number integer NOT NULL DEFAULT 0,
    cancel_requested boolean NOT NULL DEFAULT false,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT imports_pkey PRIMARY KEY (id),
    CONSTRAINT imports_asset FOREIGN KEY (owner, asset_id) REFERENCES assets (owner, id) ON DELETE CASCADE,
    CONSTRAINT imports_state CHECK (state IN ('pending', 'running', 'done', 'failed', 'cancelled'))
);
CREATE UNIQUE INDEX imports_asset_id ON imports (asset_id);

ALTER TABLE imports ENABLE ROW LEVEL SECURITY;
ALTER TABLE imports FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON imports TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A job's owner is read from its row.
CREATE POLICY claiming ON imports FOR SELECT TO assets_worker USING (true);
