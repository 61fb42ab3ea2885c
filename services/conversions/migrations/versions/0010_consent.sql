-- Persons' consents to the use of their photographs.

-- The consents that a job rests on; empty if none was required.
ALTER TABLE conversions ADD COLUMN consent_ids uuid[] NOT NULL DEFAULT '{}';
ALTER TABLE generations ADD COLUMN consent_ids uuid[] NOT NULL DEFAULT '{}';
ALTER TABLE analyses ADD COLUMN consent_ids uuid[] NOT NULL DEFAULT '{}';

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
