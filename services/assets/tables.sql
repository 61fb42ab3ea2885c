-- The schema of `assets`, with its policies. The common tables (requests, events, event_stream,
-- attempts) are in shared/database/tables.sql. Whoever adds a migration changes this file, too; a
-- test compares the two.

-- A file. PENDING until its bytes are verified; then only what its owner says about it can change.
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
    -- A summary of its C2PA manifest, and its IPTC digital source type.
    credentials jsonb,
    source_type text NOT NULL DEFAULT '',
    rejection text NOT NULL DEFAULT '',
    rejection_message text NOT NULL DEFAULT '',
    -- Archived assets are hidden from lists and kept.
    archived_at timestamptz,
    -- Set while the asset is in the trash. After expires_at a cleanup purges it with its bytes.
    deleted_at timestamptz,
    expires_at timestamptz,
    -- An asset in the trash that was public: undelete makes it public again. Meanwhile the asset
    -- and its objects are private.
    hidden_public boolean NOT NULL DEFAULT false,
    -- When the store was found to have lost or damaged its bytes.
    bytes_gone_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT assets_pkey PRIMARY KEY (id),
    CONSTRAINT assets_owner_id UNIQUE (owner, id),
    CONSTRAINT assets_state CHECK (state IN ('pending', 'ready', 'rejected')),
    CONSTRAINT assets_kind CHECK (kind IN (
        'photo', 'floorplan', 'document', 'render', 'user', 'cloth', 'result', 'product', 'reference', 'style',
        'logo', 'dataset', 'generated', 'closeup', 'sketch', 'export')),
    -- A READY asset has bytes.
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
-- A product has at most one primary image.
CREATE UNIQUE INDEX assets_primary ON assets (owner, product_id) WHERE is_primary;

-- An upload in one piece: the key that the bytes may be sent to. An asset has at most one.
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

-- A smaller form of an image: one row for each asset and preset.
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
    -- What the job that makes it waits for, and since when.
    waits_for text NOT NULL DEFAULT '',
    waiting_since timestamptz,
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
    -- Somebody other than the owner asked for it: the asset is public.
    for_others boolean NOT NULL DEFAULT false,
    -- The backfill that runs it; such a rendition is not enqueued.
    backfill_id uuid,
    state text NOT NULL DEFAULT 'pending',
    version bigint NOT NULL DEFAULT 1,
    attempt_token uuid,
    attempt_number integer NOT NULL DEFAULT 0,
    cancel_requested boolean NOT NULL DEFAULT false,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Attempts that ended in a fault, and in a loss, since the job last made progress.
    faults integer NOT NULL DEFAULT 0,
    losses integer NOT NULL DEFAULT 0,
    -- What the job waits for, away or full, and since when; see shared/background/attempts.py.
    waits_for text NOT NULL DEFAULT '',
    waiting_since timestamptz,
    CONSTRAINT renditions_pkey PRIMARY KEY (id),
    CONSTRAINT renditions_asset FOREIGN KEY (owner, asset_id) REFERENCES assets (owner, id) ON DELETE CASCADE,
    CONSTRAINT renditions_state CHECK (state IN ('pending', 'running', 'done', 'failed', 'cancelled')),
    CONSTRAINT renditions_wait CHECK ((waits_for = '') = (waiting_since IS NULL))
);
CREATE INDEX renditions_waiting ON renditions (waiting_since) WHERE waiting_since IS NOT NULL;
CREATE INDEX renditions_asset_id ON renditions (asset_id);
CREATE INDEX renditions_for_others ON renditions (owner) WHERE for_others AND state IN ('pending', 'running');

-- References: what uses an asset. They are kept here, so that whether an asset is in use is decided
-- by one local query under the asset's lock.
CREATE TABLE asset_references (
    owner text NOT NULL,
    asset_id uuid NOT NULL,
    holder text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- The service that acquired it, which alone may release it; empty: the owner itself did. The
    -- owner may take any name for a holder, that of a service's, too.
    service text NOT NULL DEFAULT '',
    CONSTRAINT asset_references_pkey PRIMARY KEY (asset_id, owner, holder, service),
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
-- A variant is as public as its asset. The policies of assets apply to the subquery.
CREATE POLICY public_reading ON variants FOR SELECT TO assets_app, assets_worker
    USING (EXISTS (SELECT FROM assets a WHERE a.id = variants.asset_id AND a.public AND a.state = 'ready'
                   AND a.deleted_at IS NULL));

ALTER TABLE renditions ENABLE ROW LEVEL SECURITY;
ALTER TABLE renditions FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON renditions TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker reads a job's owner from its row.
CREATE POLICY claiming ON renditions FOR SELECT TO assets_worker USING (true);

ALTER TABLE asset_references ENABLE ROW LEVEL SECURITY;
ALTER TABLE asset_references FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON asset_references TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

-- Uploads in parts, imports, duplicates.

-- Finds an owner's duplicates, and lists those of a hash in order.
CREATE INDEX assets_duplicates ON assets (owner, sha256, created_at DESC, id DESC) WHERE sha256 <> '';

-- An upload in parts. An asset has at most one; the asset's state says whether it has ended.
CREATE TABLE resumable_uploads (
    id uuid NOT NULL,
    owner text NOT NULL,
    asset_id uuid NOT NULL,
    -- The key at which the parts are joined, and the store's id of them until then.
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
-- A cleanup reads, across owners, which uploads are still open.
CREATE POLICY cleaning ON resumable_uploads FOR SELECT TO assets_worker USING (true);

-- The job that fetches an asset's bytes from a URL. The query of the URL may be a secret; it is
-- removed when the job ends.
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
    -- Attempts that ended in a fault, and in a loss, since the job last made progress.
    faults integer NOT NULL DEFAULT 0,
    losses integer NOT NULL DEFAULT 0,
    -- What the job waits for, away or full, and since when; see shared/background/attempts.py.
    waits_for text NOT NULL DEFAULT '',
    waiting_since timestamptz,
    CONSTRAINT imports_pkey PRIMARY KEY (id),
    CONSTRAINT imports_asset FOREIGN KEY (owner, asset_id) REFERENCES assets (owner, id) ON DELETE CASCADE,
    CONSTRAINT imports_state CHECK (state IN ('pending', 'running', 'done', 'failed', 'cancelled')),
    CONSTRAINT imports_wait CHECK ((waits_for = '') = (waiting_since IS NULL))
);
CREATE INDEX imports_waiting ON imports (waiting_since) WHERE waiting_since IS NOT NULL;
CREATE UNIQUE INDEX imports_asset_id ON imports (asset_id);

ALTER TABLE imports ENABLE ROW LEVEL SECURITY;
ALTER TABLE imports FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON imports TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker reads a job's owner from its row.
CREATE POLICY claiming ON imports FOR SELECT TO assets_worker USING (true);

-- A walk over all owners' images that makes presets which they lack. The rows belong to operators,
-- and reveal nothing about what an owner has.
CREATE TABLE backfills (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    presets text[] NOT NULL,
    kinds text[] NOT NULL,
    state text NOT NULL DEFAULT 'pending',
    version bigint NOT NULL DEFAULT 1,
    attempt_token uuid,
    attempt_number integer NOT NULL DEFAULT 0,
    cancel_requested boolean NOT NULL DEFAULT false,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    -- Images up to this id were examined.
    reached uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    -- How many images are to be examined; NULL until they are counted.
    total bigint,
    examined bigint NOT NULL DEFAULT 0,
    made bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Attempts that ended in a fault, and in a loss, since the job last made progress.
    faults integer NOT NULL DEFAULT 0,
    losses integer NOT NULL DEFAULT 0,
    -- What the job waits for, away or full, and since when; see shared/background/attempts.py.
    waits_for text NOT NULL DEFAULT '',
    waiting_since timestamptz,
    CONSTRAINT backfills_pkey PRIMARY KEY (id),
    CONSTRAINT backfills_state CHECK (state IN ('pending', 'running', 'done', 'failed', 'cancelled')),
    CONSTRAINT backfills_wait CHECK ((waits_for = '') = (waiting_since IS NULL))
);
CREATE INDEX backfills_waiting ON backfills (waiting_since) WHERE waiting_since IS NOT NULL;
-- One backfill at a time: two would take two of a worker's slots from fresh uploads.
CREATE UNIQUE INDEX backfills_one ON backfills ((true)) WHERE state IN ('pending', 'running');
CREATE INDEX backfills_list ON backfills (created_at DESC, id DESC);
CREATE INDEX renditions_backfill ON renditions (backfill_id) WHERE backfill_id IS NOT NULL
    AND state IN ('pending', 'running');

ALTER TABLE backfills ENABLE ROW LEVEL SECURITY;
ALTER TABLE backfills FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON backfills TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- Operators see and cancel each other's backfills.
CREATE POLICY operating ON backfills TO assets_app
    USING (starts_with(current_setting('app.owner_id', true), 'admin:'));
CREATE POLICY walking ON backfills TO assets_worker USING (true);
CREATE POLICY backfilling ON assets FOR SELECT TO assets_worker USING (true);
CREATE POLICY backfilling ON variants FOR SELECT TO assets_worker USING (true);

-- C2PA manifest stores, apart from the rows that lists read. They are JSON text written by others,
-- which may hold what jsonb refuses.
CREATE TABLE manifest_stores (
    owner text NOT NULL,
    asset_id uuid NOT NULL,
    store text NOT NULL,
    CONSTRAINT manifest_stores_pkey PRIMARY KEY (asset_id),
    CONSTRAINT manifest_stores_asset FOREIGN KEY (owner, asset_id) REFERENCES assets (owner, id) ON DELETE CASCADE
);
ALTER TABLE manifest_stores ENABLE ROW LEVEL SECURITY;
ALTER TABLE manifest_stores FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON manifest_stores TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

-- Documents ------------------------------------------------------------------------------------------------------

-- The last version number of a slot. The row's lock makes numbers 1, 2, 3 ... even if versions are
-- created at once. The row outlives the versions, so that a number is never used twice.
CREATE TABLE document_slots (
    owner text NOT NULL,
    session_id text NOT NULL,
    kind text NOT NULL,
    phase text NOT NULL,
    last_number integer NOT NULL,
    CONSTRAINT document_slots_pkey PRIMARY KEY (owner, session_id, kind, phase),
    CONSTRAINT document_slots_kind CHECK (kind IN ('checklist', 'renovation_plan'))
);

-- A version of a document, and the job that makes it. `content` is kept, so that it can be made
-- again.
CREATE TABLE documents (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    session_id text NOT NULL,
    kind text NOT NULL,
    phase text NOT NULL,
    number integer NOT NULL,
    title text NOT NULL,
    content jsonb NOT NULL,
    regenerated_from uuid,
    storage_key text NOT NULL DEFAULT '',
    size_bytes bigint NOT NULL DEFAULT 0,
    sha256 text NOT NULL DEFAULT '',
    page_count integer NOT NULL DEFAULT 0,
    warnings text[] NOT NULL DEFAULT '{}',
    state text NOT NULL DEFAULT 'pending',
    version bigint NOT NULL DEFAULT 1,
    attempt_token uuid,
    attempt_number integer NOT NULL DEFAULT 0,
    cancel_requested boolean NOT NULL DEFAULT false,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Attempts that ended in a fault, and in a loss, since the job last made progress.
    faults integer NOT NULL DEFAULT 0,
    losses integer NOT NULL DEFAULT 0,
    -- What the job waits for, away or full, and since when; see shared/background/attempts.py.
    waits_for text NOT NULL DEFAULT '',
    waiting_since timestamptz,
    CONSTRAINT documents_pkey PRIMARY KEY (id),
    CONSTRAINT documents_version UNIQUE (owner, session_id, kind, phase, number),
    CONSTRAINT documents_slot FOREIGN KEY (owner, session_id, kind, phase)
        REFERENCES document_slots (owner, session_id, kind, phase),
    CONSTRAINT documents_state CHECK (state IN ('pending', 'processing', 'ready', 'failed')),
    CONSTRAINT documents_kind CHECK (kind IN ('checklist', 'renovation_plan')),
    -- A READY document has bytes.
    CONSTRAINT documents_ready_has_bytes CHECK (state <> 'ready' OR (storage_key <> '' AND sha256 <> '')),
    CONSTRAINT documents_wait CHECK ((waits_for = '') = (waiting_since IS NULL))
);
CREATE INDEX documents_waiting ON documents (waiting_since) WHERE waiting_since IS NOT NULL;
CREATE INDEX documents_list ON documents (owner, created_at DESC, id DESC);
CREATE INDEX documents_list_session ON documents (owner, session_id, created_at DESC, id DESC);
CREATE INDEX documents_expiry ON documents (expires_at);

ALTER TABLE document_slots ENABLE ROW LEVEL SECURITY;
ALTER TABLE document_slots FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON document_slots TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE documents ENABLE ROW LEVEL SECURITY;
ALTER TABLE documents FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON documents TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker reads a job's owner from its row; a cleanup finds expired documents across owners.
CREATE POLICY claiming ON documents FOR SELECT TO assets_worker USING (true);

-- Styles ---------------------------------------------------------------------------------------------------------

-- The catalogue of styles, written by its operator and read by everyone. `number` is that of the
-- latest version.
CREATE TABLE styles (
    id uuid NOT NULL,
    owner text NOT NULL,
    slug text NOT NULL,
    number integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT styles_pkey PRIMARY KEY (id),
    CONSTRAINT styles_owner_id UNIQUE (owner, id),
    CONSTRAINT styles_slug UNIQUE (slug)
);
CREATE INDEX styles_list ON styles (created_at DESC, id DESC);

-- A version of a style, never changed once written. `digest` covers all its content: a put of the
-- same content makes no new version.
CREATE TABLE style_versions (
    id uuid NOT NULL,
    owner text NOT NULL,
    style_id uuid NOT NULL,
    number integer NOT NULL,
    created_by text NOT NULL,
    name text NOT NULL,
    description text NOT NULL,
    room_types text[] NOT NULL,
    palette text[] NOT NULL,
    image_count integer NOT NULL,
    digest text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT style_versions_pkey PRIMARY KEY (id),
    CONSTRAINT style_versions_owner_id UNIQUE (owner, id),
    CONSTRAINT style_versions_number UNIQUE (style_id, number),
    CONSTRAINT style_versions_style FOREIGN KEY (owner, style_id) REFERENCES styles (owner, id) ON DELETE CASCADE
);

-- The pictures of a version of a style, in their order.
CREATE TABLE style_images (
    owner text NOT NULL,
    style_version_id uuid NOT NULL,
    position integer NOT NULL,
    asset_id uuid NOT NULL,
    room_type text NOT NULL,
    caption text NOT NULL,
    CONSTRAINT style_images_pkey PRIMARY KEY (style_version_id, position),
    CONSTRAINT style_images_version FOREIGN KEY (owner, style_version_id)
        REFERENCES style_versions (owner, id) ON DELETE CASCADE,
    -- A style has references to its pictures; one that is purged by force is removed from it.
    CONSTRAINT style_images_asset FOREIGN KEY (owner, asset_id) REFERENCES assets (owner, id) ON DELETE CASCADE
);
CREATE INDEX style_images_asset_id ON style_images (asset_id);

ALTER TABLE styles ENABLE ROW LEVEL SECURITY;
ALTER TABLE styles FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON styles TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- Every caller with a tenant context may read styles.
CREATE POLICY public_reading ON styles FOR SELECT TO assets_app
    USING (NULLIF(current_setting('app.owner_id', true), '') IS NOT NULL);

ALTER TABLE style_versions ENABLE ROW LEVEL SECURITY;
ALTER TABLE style_versions FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON style_versions TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY public_reading ON style_versions FOR SELECT TO assets_app
    USING (NULLIF(current_setting('app.owner_id', true), '') IS NOT NULL);

ALTER TABLE style_images ENABLE ROW LEVEL SECURITY;
ALTER TABLE style_images FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON style_images TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY public_reading ON style_images FOR SELECT TO assets_app
    USING (NULLIF(current_setting('app.owner_id', true), '') IS NOT NULL);

-- Comparisons ----------------------------------------------------------------------------------------------------

-- Two pictures of the same subject, and the job that makes one picture of them. They may be public
-- ones of other owners, so that there is no foreign key; asset_references has the comparison's
-- references to them, and to its own picture.
CREATE TABLE comparisons (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    before_asset_id uuid NOT NULL,
    after_asset_id uuid NOT NULL,
    note text NOT NULL,
    session_id text NOT NULL,
    room_id text NOT NULL,
    picture_asset_id uuid,
    state text NOT NULL DEFAULT 'pending',
    version bigint NOT NULL DEFAULT 1,
    attempt_token uuid,
    attempt_number integer NOT NULL DEFAULT 0,
    cancel_requested boolean NOT NULL DEFAULT false,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Attempts that ended in a fault, and in a loss, since the job last made progress.
    faults integer NOT NULL DEFAULT 0,
    losses integer NOT NULL DEFAULT 0,
    -- What the job waits for, away or full, and since when; see shared/background/attempts.py.
    waits_for text NOT NULL DEFAULT '',
    waiting_since timestamptz,
    CONSTRAINT comparisons_pkey PRIMARY KEY (id),
    CONSTRAINT comparisons_state CHECK (state IN ('pending', 'processing', 'ready', 'failed')),
    CONSTRAINT comparisons_two CHECK (before_asset_id <> after_asset_id),
    CONSTRAINT comparisons_ready_has_picture CHECK ((state = 'ready') = (picture_asset_id IS NOT NULL)),
    CONSTRAINT comparisons_wait CHECK ((waits_for = '') = (waiting_since IS NULL))
);
CREATE INDEX comparisons_waiting ON comparisons (waiting_since) WHERE waiting_since IS NOT NULL;
CREATE INDEX comparisons_list ON comparisons (owner, created_at DESC, id DESC);
CREATE INDEX comparisons_list_session ON comparisons (owner, session_id, created_at DESC, id DESC)
    WHERE session_id <> '';
CREATE INDEX comparisons_before ON comparisons (owner, before_asset_id);
CREATE INDEX comparisons_after ON comparisons (owner, after_asset_id);

ALTER TABLE comparisons ENABLE ROW LEVEL SECURITY;
ALTER TABLE comparisons FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON comparisons TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker reads a job's owner from its row.
CREATE POLICY claiming ON comparisons FOR SELECT TO assets_worker USING (true);

-- Albums, the terms that assets are found by, and the history of uses.

CREATE TABLE albums (
    id uuid NOT NULL,
    owner text NOT NULL,
    name text NOT NULL,
    -- The name without case: names are compared by it.
    name_key text NOT NULL,
    description text NOT NULL DEFAULT '',
    public boolean NOT NULL DEFAULT false,
    version bigint NOT NULL DEFAULT 1,
    -- The cover that the owner chose; it is shown only while it is in the album.
    cover_asset_id uuid,
    -- Written by triggers: how many assets the owner sees in it, and how many others see.
    asset_count integer NOT NULL DEFAULT 0,
    public_count integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT albums_pkey PRIMARY KEY (id),
    CONSTRAINT albums_owner_id UNIQUE (owner, id),
    CONSTRAINT albums_name UNIQUE (owner, name_key),
    CONSTRAINT albums_counts CHECK (0 <= public_count AND public_count <= asset_count)
);
CREATE INDEX albums_list ON albums (owner, created_at DESC, id DESC);
CREATE INDEX albums_public ON albums (created_at DESC, id DESC) WHERE public;

-- The assets in an album. `shown`: READY, neither archived nor in the trash; `public`: others may
-- see it. Triggers keep both in step with the asset.
CREATE TABLE album_assets (
    owner text NOT NULL,
    album_id uuid NOT NULL,
    asset_id uuid NOT NULL,
    position bigint NOT NULL,
    shown boolean NOT NULL,
    public boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT album_assets_pkey PRIMARY KEY (album_id, asset_id),
    CONSTRAINT album_assets_album FOREIGN KEY (owner, album_id) REFERENCES albums (owner, id) ON DELETE CASCADE,
    CONSTRAINT album_assets_asset FOREIGN KEY (owner, asset_id) REFERENCES assets (owner, id) ON DELETE CASCADE
);
CREATE INDEX album_assets_order ON album_assets (album_id, position) WHERE shown;
CREATE INDEX album_assets_public ON album_assets (album_id, position) WHERE shown AND public;
CREATE INDEX album_assets_asset_id ON album_assets (owner, asset_id);

-- A term that an asset can be found by: kind, label, tag, leaf of its metadata, beginning of its
-- name. Assets that aren't READY, are archived or deleted have none. `term` is the digest of what,
-- path and value, so that values of any length are found exactly; the order is that of lists. The
-- index is a B-tree, because row-level security keeps GIN from being used. The asset's columns that
-- are repeated here never change.
CREATE TABLE asset_terms (
    owner text NOT NULL,
    term bytea NOT NULL,
    created_at timestamptz NOT NULL,
    id uuid NOT NULL,
    CONSTRAINT asset_terms_pkey PRIMARY KEY (owner, term, created_at, id)
);

-- A use: who did what with an image. The row belongs to the user's owner. There is no foreign key
-- to the asset, because the history survives it.
CREATE TABLE usage_events (
    id uuid NOT NULL,
    owner text NOT NULL,
    actor text NOT NULL,
    asset_id uuid NOT NULL,
    action text NOT NULL,
    ip inet,
    user_agent text NOT NULL DEFAULT '',
    -- Whether IP and user agent were cut so that they identify nobody.
    shortened boolean NOT NULL DEFAULT false,
    session_id text NOT NULL DEFAULT '',
    conversion_id text NOT NULL DEFAULT '',
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT usage_events_pkey PRIMARY KEY (id),
    CONSTRAINT usage_events_action CHECK (action IN (
        'upload', 'view', 'download', 'delete', 'update', 'share', 'convert', 'use_in_conversion'))
);
CREATE INDEX usage_events_list ON usage_events (owner, created_at DESC, id DESC);
CREATE INDEX usage_events_asset ON usage_events (owner, asset_id, created_at DESC, id DESC);
CREATE INDEX usage_events_action_list ON usage_events (owner, action, created_at DESC, id DESC);
CREATE INDEX usage_events_whole ON usage_events (created_at) WHERE NOT shortened;

-- How often an image was used, by day (UTC). The row belongs to the image's owner, who learns how
-- often others used it and nothing else about them.
CREATE TABLE usage_days (
    owner text NOT NULL,
    asset_id uuid NOT NULL,
    day date NOT NULL,
    action text NOT NULL,
    by_owner bigint NOT NULL,
    by_others bigint NOT NULL,
    CONSTRAINT usage_days_pkey PRIMARY KEY (owner, asset_id, day, action),
    CONSTRAINT usage_days_action CHECK (action IN (
        'upload', 'view', 'download', 'delete', 'update', 'share', 'convert', 'use_in_conversion'))
);
CREATE INDEX usage_days_owner ON usage_days (owner, day);

-- Keeps the counts of albums in step with their assets, once per statement, in the same
-- transaction. Albums are locked in one order.
CREATE FUNCTION count_album_assets() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed record;
BEGIN
    FOR changed IN EXECUTE CASE TG_OP
        WHEN 'INSERT' THEN 'SELECT album_id, count(*) FILTER (WHERE shown) AS seen,
            count(*) FILTER (WHERE shown AND public) AS seen_by_all FROM added GROUP BY album_id ORDER BY album_id'
        WHEN 'DELETE' THEN 'SELECT album_id, -count(*) FILTER (WHERE shown) AS seen,
            -count(*) FILTER (WHERE shown AND public) AS seen_by_all FROM gone GROUP BY album_id ORDER BY album_id'
        ELSE 'SELECT album_id, sum(seen) AS seen, sum(seen_by_all) AS seen_by_all FROM (
            SELECT album_id, shown::integer AS seen, (shown AND public)::integer AS seen_by_all FROM added UNION ALL
            SELECT album_id, -shown::integer, -(shown AND public)::integer FROM gone) AS moved
            GROUP BY album_id ORDER BY album_id'
        END
    LOOP
        UPDATE assets.albums SET asset_count = asset_count + changed.seen,
            public_count = public_count + changed.seen_by_all, updated_at = now() WHERE id = changed.album_id;
    END LOOP;
    RETURN NULL;
END $$;
CREATE TRIGGER album_assets_added AFTER INSERT ON album_assets REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION count_album_assets();
CREATE TRIGGER album_assets_gone AFTER DELETE ON album_assets REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION count_album_assets();
CREATE TRIGGER album_assets_changed AFTER UPDATE ON album_assets REFERENCING NEW TABLE AS added OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION count_album_assets();

-- Hides an asset in its albums while it is deleted or archived, and removes it when it is purged.
-- Shown rows are deleted here and not by the foreign key, which acts as the tables' owner, who sees
-- no album. Albums are locked before their assets, as by the calls that add and remove assets.
CREATE FUNCTION follow_asset_in_albums() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM assets.albums WHERE owner = OLD.owner AND id IN (
        SELECT album_id FROM assets.album_assets WHERE owner = OLD.owner AND asset_id = OLD.id)
    ORDER BY id FOR UPDATE;
    -- Most are in no album, and even an update of no row would fire the triggers that count.
    IF FOUND AND TG_OP = 'DELETE' THEN
        DELETE FROM assets.album_assets WHERE owner = OLD.owner AND asset_id = OLD.id;
    ELSIF FOUND THEN
        UPDATE assets.album_assets SET public = NEW.public,
            shown = NEW.state = 'ready' AND NEW.deleted_at IS NULL AND NEW.archived_at IS NULL
        WHERE owner = NEW.owner AND asset_id = NEW.id;
    END IF;
    RETURN coalesce(NEW, OLD);
END $$;
CREATE TRIGGER assets_in_albums AFTER UPDATE ON assets FOR EACH ROW
    WHEN ((OLD.state, OLD.public, OLD.deleted_at IS NULL, OLD.archived_at IS NULL)
        IS DISTINCT FROM (NEW.state, NEW.public, NEW.deleted_at IS NULL, NEW.archived_at IS NULL))
    EXECUTE FUNCTION follow_asset_in_albums();
CREATE TRIGGER assets_leave_albums BEFORE DELETE ON assets FOR EACH ROW
    WHEN (OLD.state = 'ready' AND OLD.deleted_at IS NULL AND OLD.archived_at IS NULL)
    EXECUTE FUNCTION follow_asset_in_albums();

CREATE FUNCTION asset_term(what text, path text[], value jsonb) RETURNS bytea LANGUAGE sql STABLE
RETURN substring(sha256(convert_to(jsonb_build_array(what, path, value)::text, 'UTF8')) FOR 16);

-- Returns the terms that an asset can be found by; none if lists don't show it. The plan takes
-- longer to make than to run, so it is made once.
CREATE FUNCTION asset_terms_of(a assets) RETURNS SETOF bytea LANGUAGE plpgsql STABLE ROWS 10
SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    IF a.state <> 'ready' OR a.deleted_at IS NOT NULL OR a.archived_at IS NOT NULL THEN
        RETURN;
    END IF;
    RETURN QUERY WITH RECURSIVE metadata AS (
        SELECT '{}'::text[] AS path, a.metadata AS value WHERE a.metadata <> '{}'
        UNION ALL
        SELECT inner_.path, inner_.value FROM metadata AS m CROSS JOIN LATERAL (
            SELECT m.path || e.key AS path, e.value
            FROM jsonb_each(CASE jsonb_typeof(m.value) WHEN 'object' THEN m.value ELSE '{}' END) AS e
            UNION ALL
            SELECT m.path, e.value
            FROM jsonb_array_elements(CASE jsonb_typeof(m.value) WHEN 'array' THEN m.value ELSE '[]' END) AS e
        ) AS inner_
    ), found_by (what, path, value) AS (
        SELECT 'kind', '{}'::text[], to_jsonb(a.kind)
        UNION ALL SELECT 'tag', '{}', to_jsonb(tag) FROM unnest(a.tags) AS tag
        UNION ALL SELECT label.name, '{}', to_jsonb(label.value) FROM (VALUES
            ('session_id', a.session_id), ('room_id', a.room_id), ('product_id', a.product_id),
            ('dataset_id', a.dataset_id)) AS label (name, value) WHERE label.value <> ''
        UNION ALL SELECT 'name', '{}', to_jsonb(left(a.file_name, size))
            FROM unnest('{1,2,3,4,5,6,7,8,9,10,12,16}'::integer[]) AS size WHERE length(a.file_name) >= size
        UNION ALL SELECT 'metadata', m.path, m.value FROM metadata AS m
            WHERE jsonb_typeof(m.value) NOT IN ('object', 'array')
    )
    SELECT DISTINCT assets.asset_term(f.what, f.path, f.value) FROM found_by AS f;
END $$;

CREATE FUNCTION follow_asset_in_terms() RETURNS trigger LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    before bytea[] := '{}';
    after_ bytea[] := '{}';
BEGIN
    IF TG_OP <> 'INSERT' THEN
        before := ARRAY(SELECT term FROM assets.asset_terms_of(OLD) AS term);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        after_ := ARRAY(SELECT term FROM assets.asset_terms_of(NEW) AS term);
    END IF;
    IF before <> '{}' THEN
        DELETE FROM assets.asset_terms WHERE owner = OLD.owner AND term = ANY (before) AND term <> ALL (after_)
            AND created_at = OLD.created_at AND id = OLD.id;
    END IF;
    IF after_ <> '{}' THEN
        INSERT INTO assets.asset_terms (owner, term, created_at, id)
            SELECT NEW.owner, term, NEW.created_at, NEW.id FROM unnest(after_) AS term WHERE term <> ALL (before);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER assets_terms_added AFTER INSERT ON assets FOR EACH ROW WHEN (NEW.state = 'ready')
    EXECUTE FUNCTION follow_asset_in_terms();
CREATE TRIGGER assets_terms_changed AFTER UPDATE ON assets FOR EACH ROW
    WHEN ((OLD.state, OLD.deleted_at IS NULL, OLD.archived_at IS NULL, OLD.tags, OLD.metadata, OLD.file_name,
           OLD.session_id, OLD.room_id, OLD.product_id, OLD.dataset_id)
        IS DISTINCT FROM (NEW.state, NEW.deleted_at IS NULL, NEW.archived_at IS NULL, NEW.tags, NEW.metadata,
           NEW.file_name, NEW.session_id, NEW.room_id, NEW.product_id, NEW.dataset_id))
    EXECUTE FUNCTION follow_asset_in_terms();
CREATE TRIGGER assets_terms_gone AFTER DELETE ON assets FOR EACH ROW
    WHEN (OLD.state = 'ready' AND OLD.deleted_at IS NULL AND OLD.archived_at IS NULL)
    EXECUTE FUNCTION follow_asset_in_terms();

ALTER TABLE albums ENABLE ROW LEVEL SECURITY;
ALTER TABLE albums FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON albums TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY public_reading ON albums FOR SELECT TO assets_app USING (public);

ALTER TABLE album_assets ENABLE ROW LEVEL SECURITY;
ALTER TABLE album_assets FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON album_assets TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- Others see the public assets of a public album. The policies of albums apply to the subquery.
CREATE POLICY public_reading ON album_assets FOR SELECT TO assets_app
    USING (shown AND public AND EXISTS (SELECT FROM albums a WHERE a.id = album_assets.album_id AND a.public));

ALTER TABLE asset_terms ENABLE ROW LEVEL SECURITY;
ALTER TABLE asset_terms FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON asset_terms TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE usage_events ENABLE ROW LEVEL SECURITY;
ALTER TABLE usage_events FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON usage_events TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker shortens old addresses of all owners at once.
CREATE POLICY shortening_reads ON usage_events FOR SELECT TO assets_worker USING (true);
CREATE POLICY shortening ON usage_events FOR UPDATE TO assets_worker USING (true);

ALTER TABLE usage_days ENABLE ROW LEVEL SECURITY;
ALTER TABLE usage_days FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON usage_days TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

-- Trash, cleanup, erasure, reconciler.

CREATE INDEX assets_trash ON assets (expires_at, id) WHERE deleted_at IS NOT NULL;
CREATE INDEX assets_pending ON assets (created_at, id) WHERE state = 'pending';
CREATE INDEX assets_rejected ON assets (created_at, id) WHERE state = 'rejected';
CREATE INDEX asset_references_asset ON asset_references (asset_id, created_at DESC);
-- The reconciler reads objects and rows in the byte order of keys.
CREATE INDEX assets_storage_key ON assets (storage_key COLLATE "C") WHERE storage_key <> '';
CREATE INDEX variants_storage_key ON variants (storage_key COLLATE "C") WHERE storage_key <> '';
CREATE INDEX uploads_upload_key ON uploads (upload_key COLLATE "C");
CREATE INDEX resumable_uploads_upload_key ON resumable_uploads (upload_key COLLATE "C");
CREATE INDEX documents_storage_key ON documents (storage_key COLLATE "C") WHERE storage_key <> '';
-- The owner of an asset sees its references, also those of other owners.
CREATE POLICY asset_owner ON asset_references FOR SELECT TO assets_app, assets_worker
    USING (EXISTS (SELECT FROM assets a WHERE a.id = asset_references.asset_id
                   AND a.owner = NULLIF(current_setting('app.owner_id', true), '')));
-- A worker reads across owners, but doesn't write: expired trash, abandoned uploads, storage keys.
CREATE POLICY keeping ON assets FOR SELECT TO assets_worker USING (true);
CREATE POLICY keeping ON uploads FOR SELECT TO assets_worker USING (true);
CREATE POLICY keeping ON variants FOR SELECT TO assets_worker USING (true);

-- Doomed objects: objects that no row points at any more. They are written in the transaction that
-- removes the rows, so that a crash can't lose them; a worker removes the objects, then these rows.
CREATE TABLE doomed_objects (
    seq bigint GENERATED ALWAYS AS IDENTITY,
    owner text NOT NULL,
    storage_key text NOT NULL,
    -- The store's id of an upload in parts to this key that is to be aborted.
    multipart text NOT NULL DEFAULT '',
    -- When the object may be removed: an upload key can be written to until its URL expires.
    due_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT doomed_objects_pkey PRIMARY KEY (seq)
);
CREATE INDEX doomed_objects_due ON doomed_objects (due_at, seq);
CREATE INDEX doomed_objects_key ON doomed_objects (storage_key COLLATE "C");

-- A run: a walk over many assets, as a job with its progress and report. `owner` is '' for a walk
-- over all owners.
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
    -- Attempts that ended in a fault, and in a loss, since the job last made progress.
    faults integer NOT NULL DEFAULT 0,
    losses integer NOT NULL DEFAULT 0,
    -- What the job waits for, away or full, and since when; see shared/background/attempts.py.
    waits_for text NOT NULL DEFAULT '',
    waiting_since timestamptz,
    CONSTRAINT storage_runs_pkey PRIMARY KEY (id),
    CONSTRAINT storage_runs_action CHECK (action IN ('session', 'cleanup', 'reconcile', 'erase')),
    CONSTRAINT storage_runs_state CHECK (state IN ('pending', 'running', 'done', 'failed')),
    CONSTRAINT storage_runs_wait CHECK ((waits_for = '') = (waiting_since IS NULL))
);
CREATE INDEX storage_runs_waiting ON storage_runs (waiting_since) WHERE waiting_since IS NOT NULL;
CREATE INDEX storage_runs_list ON storage_runs (owner, created_at DESC, id DESC);
-- One cleanup and one reconciler run at a time, however many workers there are.
CREATE UNIQUE INDEX storage_runs_one ON storage_runs (action)
    WHERE owner = '' AND state IN ('pending', 'running');
-- One erasure per owner; its run is the receipt.
CREATE UNIQUE INDEX storage_runs_erasure ON storage_runs (owner) WHERE action = 'erase';

-- Services that follow erasures, and when each was last heard of.
CREATE TABLE erasure_services (
    service text NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT erasure_services_pkey PRIMARY KEY (service)
);

-- How far each of these services is with the erasure of an owner. `begun_at`: since when it refuses
-- new rows of the owner, by its own tombstone; another time is that of another erasure, after a
-- backup of the service was restored. `counts`: what it erased and kept.
CREATE TABLE erasure_parts (
    owner text NOT NULL,
    service text NOT NULL,
    state text NOT NULL DEFAULT 'waiting',
    begun_at timestamptz,
    counts jsonb NOT NULL DEFAULT '{}',
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT erasure_parts_pkey PRIMARY KEY (owner, service),
    CONSTRAINT erasure_parts_state CHECK (state IN ('waiting', 'erasing', 'done')),
    CONSTRAINT erasure_parts_begun CHECK ((state = 'waiting') = (begun_at IS NULL))
);
CREATE INDEX erasure_parts_waiting ON erasure_parts (service, owner) WHERE state = 'waiting';

-- Every table that an owner's call adds to has this trigger, unless its rows depend on an asset.
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON assets
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON asset_references
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON albums
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON documents
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON styles
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON backfills
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON comparisons
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();

-- Skips rows of an erased owner in tables of uses: they are written in batches with rows of other
-- owners, which must be kept.
CREATE FUNCTION skip_erased_owner() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended(NEW.owner, 11));
    RETURN CASE WHEN EXISTS (SELECT FROM assets.erased_owners e WHERE e.owner = NEW.owner) THEN NULL ELSE NEW END;
END $$;
CREATE TRIGGER skip_erased_owner BEFORE INSERT ON usage_events
    FOR EACH ROW EXECUTE FUNCTION skip_erased_owner();
CREATE TRIGGER skip_erased_owner BEFORE INSERT ON usage_days
    FOR EACH ROW EXECUTE FUNCTION skip_erased_owner();

ALTER TABLE doomed_objects ENABLE ROW LEVEL SECURITY;
ALTER TABLE doomed_objects FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON doomed_objects TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY removing ON doomed_objects TO assets_worker USING (true);

ALTER TABLE storage_runs ENABLE ROW LEVEL SECURITY;
ALTER TABLE storage_runs FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON storage_runs TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- Runs over all owners have no owner; the contract shows them to operators only.
CREATE POLICY operating ON storage_runs TO assets_app USING (owner = '');
CREATE POLICY running ON storage_runs TO assets_worker USING (true);

ALTER TABLE erasure_services ENABLE ROW LEVEL SECURITY;
ALTER TABLE erasure_services FORCE ROW LEVEL SECURITY;
-- It holds nothing of any owner.
CREATE POLICY following ON erasure_services TO assets_app, assets_worker USING (true);

ALTER TABLE erasure_parts ENABLE ROW LEVEL SECURITY;
ALTER TABLE erasure_parts FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON erasure_parts TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A service that follows erasures sees those of every owner, in transactions that set app.operator.
CREATE POLICY operating ON erasure_parts TO assets_app USING (current_setting('app.operator', true) = 'on');

-- Deltas of each owner's usage. Triggers write them, so that every insert, update and delete of a
-- row is counted in its transaction. A change adds deltas and updates none, so that nobody waits
-- for a counter; a worker folds them into the tables below. The usage is those tables plus the
-- deltas that aren't folded yet.
CREATE TABLE storage_deltas (
    seq bigint GENERATED ALWAYS AS IDENTITY,
    owner text NOT NULL,
    session_id text NOT NULL DEFAULT '',
    -- What is stored: 'asset', 'variant', 'document'. What happened: 'upload' (settled), 'making'
    -- (a variant ended READY or FAILED), 'download'.
    noun text NOT NULL,
    kind text NOT NULL DEFAULT '',
    mime_type text NOT NULL DEFAULT '',
    state text NOT NULL,
    number bigint NOT NULL,
    bytes bigint NOT NULL,
    day date NOT NULL DEFAULT (now() AT TIME ZONE 'UTC')::date,
    CONSTRAINT storage_deltas_pkey PRIMARY KEY (seq)
);
CREATE INDEX storage_deltas_owner ON storage_deltas (owner);

-- What is stored now, per owner. The owner 'deployment', which no token can name, has the sums of
-- all owners.
CREATE TABLE storage_totals (
    owner text NOT NULL,
    noun text NOT NULL,
    kind text NOT NULL,
    mime_type text NOT NULL,
    state text NOT NULL,
    number bigint NOT NULL,
    bytes bigint NOT NULL,
    CONSTRAINT storage_totals_pkey PRIMARY KEY (owner, noun, kind, mime_type, state)
);

-- What happened, per owner and day (UTC). Noun 'stored' says by how much the stored bytes grew.
CREATE TABLE storage_days (
    owner text NOT NULL,
    day date NOT NULL,
    noun text NOT NULL,
    state text NOT NULL,
    number bigint NOT NULL,
    bytes bigint NOT NULL,
    CONSTRAINT storage_days_pkey PRIMARY KEY (owner, day, noun, state)
);

-- Usage of owners (session_id is empty) and of their sessions, for lists with the largest first.
CREATE TABLE storage_places (
    owner text NOT NULL,
    session_id text NOT NULL,
    assets bigint NOT NULL,
    stored_bytes bigint NOT NULL,
    sent_bytes bigint NOT NULL,
    CONSTRAINT storage_places_pkey PRIMARY KEY (owner, session_id)
);
CREATE INDEX storage_places_owners ON storage_places (stored_bytes DESC, owner) WHERE session_id = '';
CREATE INDEX storage_places_sessions ON storage_places (owner, stored_bytes DESC, session_id) WHERE session_id <> '';

-- The limits that an operator set for an owner, or for 'deployment', instead of the settings'
-- defaults. NULL: the default; 0: no limit.
CREATE TABLE quotas (
    id uuid NOT NULL,
    owner text NOT NULL,
    stored_bytes bigint,
    assets bigint,
    monthly_bandwidth_bytes bigint,
    updated_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT quotas_pkey PRIMARY KEY (owner),
    CONSTRAINT quotas_not_negative CHECK (least(stored_bytes, assets, monthly_bandwidth_bytes) >= 0)
);
CREATE INDEX quotas_list ON quotas (created_at DESC, id DESC);
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON quotas
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();

-- Returns the state under which an asset is counted. An archived or deleted asset keeps its bytes,
-- and so counts under a state of its own; a rejected one has no bytes.
CREATE FUNCTION counted_state(state text, deleted_at timestamptz, archived_at timestamptz) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN state = 'rejected' THEN state WHEN deleted_at IS NOT NULL THEN 'deleted'
            WHEN archived_at IS NOT NULL THEN 'archived' ELSE state END;

CREATE FUNCTION count_asset() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        INSERT INTO assets.storage_deltas (owner, session_id, noun, kind, mime_type, state, number, bytes) VALUES
            (OLD.owner, OLD.session_id, 'asset', OLD.kind, OLD.mime_type,
             assets.counted_state(OLD.state, OLD.deleted_at, OLD.archived_at),
             -1, CASE WHEN OLD.state = 'rejected' THEN 0 ELSE -OLD.size_bytes END);
    END IF;
    INSERT INTO assets.storage_deltas (owner, session_id, noun, kind, mime_type, state, number, bytes) VALUES
        (NEW.owner, NEW.session_id, 'asset', NEW.kind, NEW.mime_type,
         assets.counted_state(NEW.state, NEW.deleted_at, NEW.archived_at),
         1, CASE WHEN NEW.state = 'rejected' THEN 0 ELSE NEW.size_bytes END);
    IF TG_OP = 'UPDATE' AND OLD.state = 'pending' AND NEW.state <> 'pending' THEN
        INSERT INTO assets.storage_deltas (owner, noun, state, number, bytes)
        VALUES (NEW.owner, 'upload', NEW.state, 1, NEW.size_bytes);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER count_asset AFTER INSERT ON assets FOR EACH ROW EXECUTE FUNCTION count_asset();
CREATE TRIGGER count_asset_change AFTER UPDATE ON assets FOR EACH ROW
    WHEN ((OLD.state, OLD.size_bytes, OLD.kind, OLD.mime_type, OLD.session_id, OLD.archived_at IS NULL,
           OLD.deleted_at IS NULL) IS DISTINCT FROM
          (NEW.state, NEW.size_bytes, NEW.kind, NEW.mime_type, NEW.session_id, NEW.archived_at IS NULL,
           NEW.deleted_at IS NULL))
    EXECUTE FUNCTION count_asset();

-- Deletes come by the hundred and are counted once per statement. Variants that a foreign key
-- deletes with the assets of a statement fire their trigger once for all, too.
CREATE FUNCTION count_assets_gone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO assets.storage_deltas (owner, session_id, noun, kind, mime_type, state, number, bytes)
    SELECT owner, session_id, 'asset', kind, mime_type,
        assets.counted_state(state, deleted_at, archived_at) AS counted_state, -count(*),
        -sum(CASE WHEN state = 'rejected' THEN 0 ELSE size_bytes END)
    FROM gone GROUP BY owner, session_id, kind, mime_type, counted_state;
    RETURN NULL;
END $$;
CREATE TRIGGER count_assets_gone AFTER DELETE ON assets REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION count_assets_gone();

CREATE FUNCTION count_variant() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        INSERT INTO assets.storage_deltas (owner, noun, kind, mime_type, state, number, bytes)
        VALUES (OLD.owner, 'variant', OLD.preset, OLD.mime_type, OLD.state, -1, -OLD.size_bytes);
    END IF;
    INSERT INTO assets.storage_deltas (owner, noun, kind, mime_type, state, number, bytes)
    VALUES (NEW.owner, 'variant', NEW.preset, NEW.mime_type, NEW.state, 1, NEW.size_bytes);
    IF TG_OP = 'UPDATE' AND OLD.state <> NEW.state AND NEW.state IN ('ready', 'failed') THEN
        INSERT INTO assets.storage_deltas (owner, noun, state, number, bytes)
        VALUES (NEW.owner, 'making', NEW.state, 1, NEW.size_bytes);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER count_variant AFTER INSERT ON variants FOR EACH ROW EXECUTE FUNCTION count_variant();
CREATE TRIGGER count_variant_change AFTER UPDATE ON variants FOR EACH ROW
    WHEN ((OLD.state, OLD.size_bytes, OLD.mime_type) IS DISTINCT FROM (NEW.state, NEW.size_bytes, NEW.mime_type))
    EXECUTE FUNCTION count_variant();

CREATE FUNCTION count_variants_gone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO assets.storage_deltas (owner, noun, kind, mime_type, state, number, bytes)
    SELECT owner, 'variant', preset, mime_type, state, -count(*), -sum(size_bytes)
    FROM gone GROUP BY owner, preset, mime_type, state;
    RETURN NULL;
END $$;
CREATE TRIGGER count_variants_gone AFTER DELETE ON variants REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION count_variants_gone();

CREATE FUNCTION count_document() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO assets.storage_deltas (owner, session_id, noun, kind, state, number, bytes)
        VALUES (OLD.owner, OLD.session_id, 'document', OLD.kind, OLD.state, -1, -OLD.size_bytes);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO assets.storage_deltas (owner, session_id, noun, kind, state, number, bytes)
        VALUES (NEW.owner, NEW.session_id, 'document', NEW.kind, NEW.state, 1, NEW.size_bytes);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER count_document AFTER INSERT OR DELETE ON documents FOR EACH ROW EXECUTE FUNCTION count_document();
CREATE TRIGGER count_document_change AFTER UPDATE ON documents FOR EACH ROW
    WHEN ((OLD.state, OLD.size_bytes) IS DISTINCT FROM (NEW.state, NEW.size_bytes))
    EXECUTE FUNCTION count_document();

-- An operator reads and writes across owners in transactions that set app.operator. No table but
-- these, quotas and those of erasures has such a policy.
ALTER TABLE storage_deltas ENABLE ROW LEVEL SECURITY;
ALTER TABLE storage_deltas FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON storage_deltas TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY operating ON storage_deltas TO assets_app USING (current_setting('app.operator', true) = 'on');
CREATE POLICY folding ON storage_deltas TO assets_worker USING (true);
-- A variant that the foreign key deletes with its asset is deleted, and so counted, by the tables'
-- owner.
CREATE POLICY cascading ON storage_deltas FOR INSERT TO assets_owner WITH CHECK (true);

ALTER TABLE storage_totals ENABLE ROW LEVEL SECURITY;
ALTER TABLE storage_totals FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON storage_totals FOR SELECT TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY operating ON storage_totals FOR SELECT TO assets_app USING (current_setting('app.operator', true) = 'on');
CREATE POLICY folding ON storage_totals TO assets_worker USING (true);

ALTER TABLE storage_days ENABLE ROW LEVEL SECURITY;
ALTER TABLE storage_days FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON storage_days FOR SELECT TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY operating ON storage_days FOR SELECT TO assets_app USING (current_setting('app.operator', true) = 'on');
CREATE POLICY folding ON storage_days TO assets_worker USING (true);

ALTER TABLE storage_places ENABLE ROW LEVEL SECURITY;
ALTER TABLE storage_places FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON storage_places FOR SELECT TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY operating ON storage_places FOR SELECT TO assets_app USING (current_setting('app.operator', true) = 'on');
CREATE POLICY folding ON storage_places TO assets_worker USING (true);

ALTER TABLE quotas ENABLE ROW LEVEL SECURITY;
ALTER TABLE quotas FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON quotas FOR SELECT TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY operating ON quotas TO assets_app USING (current_setting('app.operator', true) = 'on');
-- An upload reads whether the deployment has a quota.
CREATE POLICY deployment ON quotas FOR SELECT TO assets_app USING (owner = 'deployment');
-- An erasure deletes the owner's quota, too.
CREATE POLICY erasing ON quotas FOR DELETE TO assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- Bytes that a worker adds are compared with the deployment's limits, too.
CREATE POLICY holding ON quotas FOR SELECT TO assets_worker USING (true);
