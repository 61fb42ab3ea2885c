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

-- What is used, by whom: counted by the database itself, so that every way a row may come, change or go is counted, in
-- the transaction that changes it. A change adds rows here and updates none, so that nobody waits for a counter; a task
-- of the worker folds them into the tables below. What is used is those tables plus what isn't folded yet.
CREATE TABLE storage_deltas (
    seq bigint GENERATED ALWAYS AS IDENTITY,
    owner text NOT NULL,
    session_id text NOT NULL DEFAULT '',
    -- What is there: 'asset', 'variant'. What happened: 'upload' (settled), 'making' (of a variant), 'download'.
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

-- What is there now, per owner. The owner 'deployment', which no token can name, has the sums of all.
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

-- What happened, per owner and day (UTC). Noun 'stored' is by how much the stored bytes grew.
CREATE TABLE storage_days (
    owner text NOT NULL,
    day date NOT NULL,
    noun text NOT NULL,
    state text NOT NULL,
    number bigint NOT NULL,
    bytes bigint NOT NULL,
    CONSTRAINT storage_days_pkey PRIMARY KEY (owner, day, noun, state)
);

-- For lists with the largest first: owners (their session_id is empty) and their sessions.
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

-- What an operator allows an owner, or 'deployment', instead of the settings' defaults. NULL: the default; 0: no limit.
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

-- An archived or deleted asset keeps its bytes: it counts, under a state of its own. A refused one has none.
CREATE FUNCTION count_asset() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO assets.storage_deltas (owner, session_id, noun, kind, mime_type, state, number, bytes) VALUES
            (OLD.owner, OLD.session_id, 'asset', OLD.kind, OLD.mime_type,
             CASE WHEN OLD.state = 'rejected' THEN 'rejected' WHEN OLD.deleted_at IS NOT NULL THEN 'deleted'
                  WHEN OLD.archived_at IS NOT NULL THEN 'archived' ELSE OLD.state END,
             -1, CASE WHEN OLD.state = 'rejected' THEN 0 ELSE -OLD.size_bytes END);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO assets.storage_deltas (owner, session_id, noun, kind, mime_type, state, number, bytes) VALUES
            (NEW.owner, NEW.session_id, 'asset', NEW.kind, NEW.mime_type,
             CASE WHEN NEW.state = 'rejected' THEN 'rejected' WHEN NEW.deleted_at IS NOT NULL THEN 'deleted'
                  WHEN NEW.archived_at IS NOT NULL THEN 'archived' ELSE NEW.state END,
             1, CASE WHEN NEW.state = 'rejected' THEN 0 ELSE NEW.size_bytes END);
    END IF;
    IF TG_OP = 'UPDATE' AND OLD.state = 'pending' AND NEW.state <> 'pending' THEN
        INSERT INTO assets.storage_deltas (owner, noun, state, number, bytes)
        VALUES (NEW.owner, 'upload', NEW.state, 1, NEW.size_bytes);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER count_asset AFTER INSERT OR DELETE ON assets FOR EACH ROW EXECUTE FUNCTION count_asset();
CREATE TRIGGER count_asset_change AFTER UPDATE ON assets FOR EACH ROW
    WHEN ((OLD.state, OLD.size_bytes, OLD.kind, OLD.mime_type, OLD.session_id, OLD.archived_at IS NULL,
           OLD.deleted_at IS NULL) IS DISTINCT FROM
          (NEW.state, NEW.size_bytes, NEW.kind, NEW.mime_type, NEW.session_id, NEW.archived_at IS NULL,
           NEW.deleted_at IS NULL))
    EXECUTE FUNCTION count_asset();

CREATE FUNCTION count_variant() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO assets.storage_deltas (owner, noun, kind, mime_type, state, number, bytes)
        VALUES (OLD.owner, 'variant', OLD.preset, OLD.mime_type, OLD.state, -1, -OLD.size_bytes);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO assets.storage_deltas (owner, noun, kind, mime_type, state, number, bytes)
        VALUES (NEW.owner, 'variant', NEW.preset, NEW.mime_type, NEW.state, 1, NEW.size_bytes);
    END IF;
    IF TG_OP = 'UPDATE' AND OLD.state <> NEW.state AND NEW.state IN ('ready', 'failed') THEN
        INSERT INTO assets.storage_deltas (owner, noun, state, number, bytes)
        VALUES (NEW.owner, 'making', NEW.state, 1, NEW.size_bytes);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER count_variant AFTER INSERT OR DELETE ON variants FOR EACH ROW EXECUTE FUNCTION count_variant();
CREATE TRIGGER count_variant_change AFTER UPDATE ON variants FOR EACH ROW
    WHEN ((OLD.state, OLD.size_bytes, OLD.mime_type) IS DISTINCT FROM (NEW.state, NEW.size_bytes, NEW.mime_type))
    EXECUTE FUNCTION count_variant();

-- An operator sees and sets across owners in transactions that say so (app.operator); no other table has such a policy.
ALTER TABLE storage_deltas ENABLE ROW LEVEL SECURITY;
ALTER TABLE storage_deltas FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON storage_deltas TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY operating ON storage_deltas TO assets_app USING (current_setting('app.operator', true) = 'on');
CREATE POLICY folding ON storage_deltas TO assets_worker USING (true);
-- A variant that goes with its asset is deleted, and so counted, as the owner of the tables.
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
