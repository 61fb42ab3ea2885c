-- The trash of tech files, collections, exports and runs; versions of facts; the room that exports take.
ALTER TABLE collections
    ADD COLUMN archived_at timestamptz,
    ADD COLUMN deleted_at timestamptz,
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN facts_number integer NOT NULL DEFAULT 1,
    ADD COLUMN facts_by text NOT NULL DEFAULT '',
    ADD COLUMN facts_reason text NOT NULL DEFAULT '',
    ADD COLUMN facts_at timestamptz,
    ADD CONSTRAINT collections_trash CHECK ((deleted_at IS NULL) = (expires_at IS NULL));
ALTER TABLE exports
    ADD COLUMN deleted_at timestamptz,
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN ended_at timestamptz,
    ADD COLUMN bytes_gone_at timestamptz,
    ADD COLUMN bytes_gone_reason text NOT NULL DEFAULT '',
    ADD CONSTRAINT exports_trash CHECK ((deleted_at IS NULL) = (expires_at IS NULL)),
    ADD CONSTRAINT exports_gone_reason CHECK (bytes_gone_reason IN ('', 'retention', 'lost')),
    ADD CONSTRAINT exports_gone CHECK ((bytes_gone_at IS NULL) = (bytes_gone_reason = ''));
ALTER TABLE tech_files
    ADD COLUMN deleted_at timestamptz,
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN parent_purged boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT tech_files_trash CHECK ((deleted_at IS NULL) = (expires_at IS NULL)),
    DROP CONSTRAINT tech_files_latest_is_live,
    ADD CONSTRAINT tech_files_latest_is_live CHECK (NOT is_latest OR (archived_at IS NULL AND deleted_at IS NULL));
ALTER TABLE runs
    ADD COLUMN deleted_at timestamptz,
    ADD COLUMN expires_at timestamptz,
    ADD CONSTRAINT runs_trash CHECK ((deleted_at IS NULL) = (expires_at IS NULL));
ALTER TABLE runs DROP CONSTRAINT runs_pack_file;
CREATE INDEX collections_expire ON collections (expires_at, id) WHERE expires_at IS NOT NULL;
CREATE INDEX exports_list ON exports (owner, created_at DESC, id DESC);
CREATE INDEX exports_expire ON exports (expires_at, id) WHERE expires_at IS NOT NULL;
CREATE INDEX exports_stored ON exports (owner, size_bytes) WHERE state = 'completed' AND bytes_gone_at IS NULL;
CREATE INDEX exports_unfinished ON exports (owner) WHERE state IN ('pending', 'processing');
CREATE INDEX exports_retained ON exports (coalesce(ended_at, created_at), id) WHERE state = 'completed' AND bytes_gone_at IS NULL;
CREATE INDEX exports_key ON exports (storage_key COLLATE "C") WHERE storage_key <> '';
CREATE INDEX tech_files_expire ON tech_files (expires_at, id) WHERE expires_at IS NOT NULL;
CREATE INDEX tech_files_archived ON tech_files (archived_at, id) WHERE archived_at IS NOT NULL AND deleted_at IS NULL;
CREATE INDEX tech_files_picture ON tech_files (owner, file_asset_id) WHERE file_asset_id IS NOT NULL;
CREATE INDEX tech_files_parent_id ON tech_files (parent_file_id) WHERE parent_file_id IS NOT NULL;
CREATE INDEX tech_files_export_id ON tech_files (export_id) WHERE export_id IS NOT NULL;
CREATE INDEX tech_files_collection_id ON tech_files (collection_id) WHERE collection_id IS NOT NULL;
CREATE INDEX runs_expire ON runs (expires_at, id) WHERE expires_at IS NOT NULL;
CREATE INDEX runs_collection_id ON runs (collection_id);
CREATE INDEX runs_open ON runs (owner) WHERE state IN ('pending', 'processing');
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

ALTER TABLE purged_numbers ENABLE ROW LEVEL SECURITY;
ALTER TABLE purged_numbers FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON purged_numbers TO {service}_app, {service}_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE collection_facts ENABLE ROW LEVEL SECURITY;
ALTER TABLE collection_facts FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON collection_facts TO {service}_app, {service}_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE doomed_objects ENABLE ROW LEVEL SECURITY;
ALTER TABLE doomed_objects FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON doomed_objects TO {service}_app, {service}_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY removing ON doomed_objects TO {service}_worker USING (true);
CREATE POLICY operating ON doomed_objects FOR SELECT TO {service}_app USING ((SELECT current_setting('app.operator', true) = 'on'));

ALTER TABLE picture_releases ENABLE ROW LEVEL SECURITY;
ALTER TABLE picture_releases FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON picture_releases TO {service}_app, {service}_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY settling ON picture_releases FOR SELECT TO {service}_worker USING (true);

-- A worker finds what is to be purged, of every owner.
CREATE POLICY keeping ON collections FOR SELECT TO {service}_worker USING (true);
-- A worker finds what is to be deleted or purged, of every owner.
CREATE POLICY keeping ON tech_files FOR SELECT TO {service}_worker USING (true);
-- An operator reads across owners in transactions that set app.operator.
CREATE POLICY operating ON exports FOR SELECT TO {service}_app USING ((SELECT current_setting('app.operator', true) = 'on'));
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON purged_numbers
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON collection_facts
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON doomed_objects
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON picture_releases
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
