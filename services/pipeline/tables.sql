-- The schema of `pipeline`, with its policies. Common tables (requests, events, event_stream,
-- attempts) are in shared/database/tables.sql. A migration changes both this file and the database;
-- a test compares them.
--
-- Locks are taken in one order, so that nothing deadlocks: a phase, its result and review, the next
-- phase, the product.

-- A product, which goes through four phases. Its state follows from `preparation` and its phases;
-- see rules.product_state.
CREATE TABLE products (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    name text NOT NULL,
    model text NOT NULL,
    facts jsonb NOT NULL,
    auto_advance boolean NOT NULL,
    market_provider text NOT NULL,
    -- The numbers of the phases that only outside runners may claim; phases.external says the same.
    external_phases smallint[] NOT NULL,
    state text NOT NULL DEFAULT 'uploaded',
    version bigint NOT NULL DEFAULT 1,
    -- Whether its images are READY and referenced at `assets`, as they must be before phase 1
    -- starts.
    preparation text NOT NULL DEFAULT 'pending',
    -- The time since which the product waits for its images; a retry resets it.
    preparing_since timestamptz NOT NULL DEFAULT now(),
    running boolean NOT NULL DEFAULT false,
    confidence double precision,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT products_pkey PRIMARY KEY (id),
    CONSTRAINT products_owner_id UNIQUE (owner, id),
    CONSTRAINT products_state CHECK (
        state IN ('uploaded', 'processing', 'awaiting_review', 'completed', 'error', 'stopped')),
    CONSTRAINT products_preparation CHECK (preparation IN ('pending', 'done', 'failed')),
    CONSTRAINT products_market_provider CHECK (market_provider IN ('price_book', 'none')),
    CONSTRAINT products_confidence CHECK (confidence BETWEEN 0 AND 1),
    CONSTRAINT products_error_has_reason CHECK ((state = 'error') = (error_class <> '')),
    CONSTRAINT products_running CHECK (NOT running OR state = 'processing')
);
CREATE INDEX products_list ON products (owner, created_at DESC, id DESC);
CREATE INDEX products_list_state ON products (owner, state, created_at DESC, id DESC);
CREATE INDEX products_changed ON products (owner, updated_at);

-- The images of a product, which `assets` stores.
CREATE TABLE product_images (
    owner text NOT NULL,
    product_id uuid NOT NULL,
    position smallint NOT NULL,
    asset_id uuid NOT NULL,
    view text NOT NULL,
    is_primary boolean NOT NULL,
    CONSTRAINT product_images_pkey PRIMARY KEY (product_id, position),
    CONSTRAINT product_images_product FOREIGN KEY (owner, product_id) REFERENCES products (owner, id) ON DELETE CASCADE,
    CONSTRAINT product_images_view CHECK (view IN ('', 'front', 'back', 'side'))
);
CREATE UNIQUE INDEX product_images_asset ON product_images (product_id, asset_id);
-- One primary image per product.
CREATE UNIQUE INDEX product_images_primary ON product_images (product_id) WHERE is_primary;

-- Four phases per product, inserted with it. A phase is its own job row; see
-- shared/background/attempts.py.
CREATE TABLE phases (
    id uuid NOT NULL,
    owner text NOT NULL,
    product_id uuid NOT NULL,
    number smallint NOT NULL,
    state text NOT NULL DEFAULT 'pending',
    version bigint NOT NULL DEFAULT 1,
    -- Whether a start was requested, by the phase before it or by a person.
    started boolean NOT NULL DEFAULT false,
    -- Whether only an outside runner may claim it.
    external boolean NOT NULL,
    retry_count integer NOT NULL DEFAULT 0,
    confidence double precision,
    attempt_token uuid,
    attempt_number integer NOT NULL DEFAULT 0,
    lease_expires_at timestamptz,
    cancel_requested boolean NOT NULL DEFAULT false,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    started_at timestamptz,
    completed_at timestamptz,
    stopped_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Attempts that failed through the job itself, and attempts whose worker vanished. A success or
    -- a retry sets both to 0.
    faults integer NOT NULL DEFAULT 0,
    losses integer NOT NULL DEFAULT 0,
    -- What the job waits for because it is away or has no room, and since when; see
    -- shared/background/attempts.py.
    waits_for text NOT NULL DEFAULT '',
    waiting_since timestamptz,
    CONSTRAINT phases_pkey PRIMARY KEY (id),
    CONSTRAINT phases_owner_id UNIQUE (owner, id),
    CONSTRAINT phases_product FOREIGN KEY (owner, product_id) REFERENCES products (owner, id) ON DELETE CASCADE,
    CONSTRAINT phases_number CHECK (number BETWEEN 1 AND 4),
    CONSTRAINT phases_state CHECK (
        state IN ('pending', 'running', 'awaiting_review', 'completed', 'failed', 'stopped')),
    CONSTRAINT phases_confidence CHECK (confidence BETWEEN 0 AND 1),
    CONSTRAINT phases_failed_has_reason CHECK (state <> 'failed' OR error_class <> ''),
    CONSTRAINT phases_wait CHECK ((waits_for = '') = (waiting_since IS NULL))
);
CREATE INDEX phases_waiting ON phases (waiting_since) WHERE waiting_since IS NOT NULL;
CREATE UNIQUE INDEX phases_of_product ON phases (product_id, number);
-- Leases of outside runners, for the reaper.
CREATE INDEX phases_leases ON phases (lease_expires_at) WHERE state = 'running' AND external;

-- The effective value of a phase, one row per product and phase. Attempts are in `attempts`,
-- decisions in `reviews`.
CREATE TABLE results (
    id uuid NOT NULL,
    owner text NOT NULL,
    product_id uuid NOT NULL,
    phase smallint NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    value jsonb NOT NULL,
    confidence double precision,
    source text NOT NULL,
    provider text NOT NULL,
    evidence jsonb NOT NULL DEFAULT '[]',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT results_pkey PRIMARY KEY (id),
    CONSTRAINT results_product FOREIGN KEY (owner, product_id) REFERENCES products (owner, id) ON DELETE CASCADE,
    CONSTRAINT results_phase CHECK (phase BETWEEN 1 AND 4),
    CONSTRAINT results_source CHECK (source IN ('service', 'runner', 'reviewer')),
    CONSTRAINT results_confidence CHECK (confidence BETWEEN 0 AND 1)
);
CREATE UNIQUE INDEX results_of_phase ON results (product_id, phase);

-- A question to a person: the model's value, the reviewer's value and the effective one.
CREATE TABLE reviews (
    id uuid NOT NULL,
    owner text NOT NULL,
    product_id uuid NOT NULL,
    phase_id uuid NOT NULL,
    phase smallint NOT NULL,
    state text NOT NULL DEFAULT 'open',
    version bigint NOT NULL DEFAULT 1,
    model_value jsonb NOT NULL,
    model_confidence double precision NOT NULL,
    evidence jsonb NOT NULL DEFAULT '[]',
    reviewer_value jsonb,
    effective_value jsonb,
    note text NOT NULL DEFAULT '',
    claimed_by text NOT NULL DEFAULT '',
    claim_expires_at timestamptz,
    decided_by text NOT NULL DEFAULT '',
    decided_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT reviews_pkey PRIMARY KEY (id),
    CONSTRAINT reviews_phase FOREIGN KEY (owner, phase_id) REFERENCES phases (owner, id) ON DELETE CASCADE,
    CONSTRAINT reviews_state CHECK (state IN ('open', 'approved', 'edited', 'rejected', 'sent_back', 'withdrawn')),
    CONSTRAINT reviews_effective CHECK ((state IN ('approved', 'edited')) = (effective_value IS NOT NULL)),
    CONSTRAINT reviews_decided CHECK ((state IN ('open', 'withdrawn')) = (decided_at IS NULL))
);
-- One open review per phase.
CREATE UNIQUE INDEX reviews_open ON reviews (phase_id) WHERE state = 'open';
CREATE INDEX reviews_list ON reviews (owner, created_at DESC, id DESC);
CREATE INDEX reviews_list_state ON reviews (owner, state, created_at DESC, id DESC);
CREATE INDEX reviews_list_product ON reviews (owner, product_id, created_at DESC, id DESC);

-- Log lines, which are never changed. `phase` 0: the product as a whole.
CREATE TABLE logs (
    id uuid NOT NULL,
    owner text NOT NULL,
    product_id uuid NOT NULL,
    phase smallint NOT NULL,
    level text NOT NULL,
    message text NOT NULL,
    action text NOT NULL,
    details jsonb NOT NULL DEFAULT '{}',
    actor text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT logs_pkey PRIMARY KEY (id),
    CONSTRAINT logs_product FOREIGN KEY (owner, product_id) REFERENCES products (owner, id) ON DELETE CASCADE,
    CONSTRAINT logs_phase CHECK (phase BETWEEN 0 AND 4),
    CONSTRAINT logs_level CHECK (level IN ('debug', 'info', 'warning', 'error'))
);
CREATE INDEX logs_list ON logs (owner, created_at DESC, id DESC);
CREATE INDEX logs_list_product ON logs (owner, product_id, created_at DESC, id DESC);

-- Offers that the owner imported. The `_key` columns hold the same text folded, for lookups.
CREATE TABLE price_book_entries (
    id uuid NOT NULL,
    owner text NOT NULL,
    brand text NOT NULL,
    model text NOT NULL,
    name text NOT NULL,
    marketplace text NOT NULL,
    category text NOT NULL,
    link text NOT NULL,
    price double precision,
    msrp double precision,
    currency text NOT NULL,
    brand_key text NOT NULL,
    model_key text NOT NULL,
    name_key text NOT NULL,
    marketplace_key text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT price_book_entries_pkey PRIMARY KEY (id),
    CONSTRAINT price_book_entries_named CHECK (model_key <> '' OR name_key <> ''),
    CONSTRAINT price_book_entries_priced CHECK (price > 0 OR msrp > 0)
);
-- One offer per product and marketplace: importing again replaces it.
CREATE UNIQUE INDEX price_book_entries_offer
    ON price_book_entries (owner, brand_key, model_key, name_key, marketplace_key);
CREATE INDEX price_book_entries_model ON price_book_entries (owner, model_key) WHERE model_key <> '';
CREATE INDEX price_book_entries_name ON price_book_entries (owner, name_key) WHERE name_key <> '';
CREATE INDEX price_book_entries_list ON price_book_entries (owner, created_at DESC, id DESC);

ALTER TABLE products ENABLE ROW LEVEL SECURITY;
ALTER TABLE products FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON products TO pipeline_app, pipeline_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker reads a job's owner from the job's row, and preparing a product is a job.
CREATE POLICY claiming ON products FOR SELECT TO pipeline_worker USING (true);

ALTER TABLE product_images ENABLE ROW LEVEL SECURITY;
ALTER TABLE product_images FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON product_images TO pipeline_app, pipeline_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE phases ENABLE ROW LEVEL SECURITY;
ALTER TABLE phases FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON phases TO pipeline_app, pipeline_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker reads a job's owner from the job's row; the reaper looks for leases that have passed.
CREATE POLICY claiming ON phases FOR SELECT TO pipeline_worker USING (true);

ALTER TABLE results ENABLE ROW LEVEL SECURITY;
ALTER TABLE results FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON results TO pipeline_app, pipeline_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE reviews ENABLE ROW LEVEL SECURITY;
ALTER TABLE reviews FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON reviews TO pipeline_app, pipeline_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE logs ENABLE ROW LEVEL SECURITY;
ALTER TABLE logs FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON logs TO pipeline_app, pipeline_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE price_book_entries ENABLE ROW LEVEL SECURITY;
ALTER TABLE price_book_entries FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON price_book_entries TO pipeline_app, pipeline_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
