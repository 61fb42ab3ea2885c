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

-- A document of a release. `draft`: it is stamped as one.
ALTER TABLE exports ADD COLUMN release_id uuid;
ALTER TABLE exports ADD COLUMN draft boolean NOT NULL DEFAULT false;
-- The most pixels on the longer side of a picture in a ZIP; 0: the originals.
ALTER TABLE exports ADD COLUMN picture_pixels integer NOT NULL DEFAULT 0;
ALTER TABLE exports ADD CONSTRAINT exports_release FOREIGN KEY (owner, release_id) REFERENCES releases (owner, id);
ALTER TABLE exports ADD CONSTRAINT exports_draft CHECK (NOT draft OR release_id IS NOT NULL);
CREATE INDEX exports_release_id ON exports (release_id) WHERE release_id IS NOT NULL;
DROP INDEX exports_retained;
CREATE INDEX exports_retained ON exports (coalesce(ended_at, created_at), id)
    WHERE state = 'completed' AND bytes_gone_at IS NULL AND release_id IS NULL;

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
