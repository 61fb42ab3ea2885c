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
    -- The numbers of the phases that only outside workers may claim; phases.external says the same.
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
    -- As given, then as a reviewer of phase 1 decided, like name and model.
    condition text NOT NULL DEFAULT '',
    condition_details text NOT NULL DEFAULT '',
    -- Whether phase 2 looked for the product on the market and found nothing.
    nothing_found boolean NOT NULL DEFAULT false,
    archived_at timestamptz,
    -- When it was moved to the trash, and when it will be purged.
    deleted_at timestamptz,
    expires_at timestamptz,
    -- What its owner stated anew after the product was created, by the word of the facts about a
    -- product, such as `name`, with the time: what was found or decided before no longer counts.
    restated jsonb NOT NULL DEFAULT '{}',
    CONSTRAINT products_pkey PRIMARY KEY (id),
    CONSTRAINT products_owner_id UNIQUE (owner, id),
    CONSTRAINT products_state CHECK (
        state IN ('uploaded', 'processing', 'awaiting_review', 'completed', 'error', 'stopped')),
    CONSTRAINT products_preparation CHECK (preparation IN ('pending', 'done', 'failed')),
    CONSTRAINT products_market_provider CHECK (market_provider IN ('price_book', 'none', 'http')),
    CONSTRAINT products_confidence CHECK (confidence BETWEEN 0 AND 1),
    CONSTRAINT products_error_has_reason CHECK ((state = 'error') = (error_class <> '')),
    CONSTRAINT products_running CHECK (NOT running OR state = 'processing'),
    CONSTRAINT products_trash CHECK ((deleted_at IS NULL) = (expires_at IS NULL))
);
-- Also counts products without reading their rows.
CREATE INDEX products_list ON products (owner, created_at DESC, id DESC)
    INCLUDE (state, running, archived_at, deleted_at, nothing_found);
-- Lists show these unless they are asked for more.
CREATE INDEX products_shown ON products (owner, created_at DESC, id DESC)
    WHERE archived_at IS NULL AND deleted_at IS NULL;
CREATE INDEX products_shown_state ON products (owner, state, created_at DESC, id DESC)
    WHERE archived_at IS NULL AND deleted_at IS NULL;
CREATE INDEX products_trash ON products (expires_at) WHERE expires_at IS NOT NULL;
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
    -- The URL that the asset was imported from, without its query.
    source_url text NOT NULL DEFAULT '',
    -- What `assets` knows of the file, once the image is READY: when the product was prepared, or
    -- when the image was added.
    file_name text NOT NULL DEFAULT '',
    size_bytes bigint,
    mime_type text NOT NULL DEFAULT '',
    width integer,
    height integer,
    CONSTRAINT product_images_pkey PRIMARY KEY (product_id, position),
    CONSTRAINT product_images_product FOREIGN KEY (owner, product_id) REFERENCES products (owner, id) ON DELETE CASCADE,
    CONSTRAINT product_images_view CHECK (view IN ('', 'front', 'back', 'side'))
);
CREATE UNIQUE INDEX product_images_asset ON product_images (product_id, asset_id);
-- One primary image per product.
CREATE UNIQUE INDEX product_images_primary ON product_images (product_id) WHERE is_primary;

-- A product that isn't there yet, whose images are being brought to `assets`. Creating the product
-- deletes the row; a row that stays behind says that there are images to discard.
CREATE TABLE product_drafts (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Its images are being purged: no product is made of it any more.
    given_up boolean NOT NULL DEFAULT false,
    CONSTRAINT product_drafts_pkey PRIMARY KEY (id)
);
CREATE INDEX product_drafts_oldest ON product_drafts (created_at);
-- Images that left a product, or whose product was purged, one row each time: their references at
-- assets are still to be released. A job releases them and deletes the rows.
CREATE TABLE product_releases (
    id uuid NOT NULL,
    owner text NOT NULL,
    product_id uuid NOT NULL,
    asset_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT product_releases_pkey PRIMARY KEY (product_id, id)
);

-- What products are found by besides their dates, written by triggers in the transaction of the
-- change. A term begins with a digit: 0 of a product that lists show, 1 of an archived one, 2 of
-- one in the trash. Then comes `w` with the beginning of a word of its name or model, `s` with its
-- state, or `m` with its source of market data. The index is a B-tree, because row-level security
-- keeps GIN from being used. created_at is the product's, which never changes.
CREATE TABLE product_terms (
    owner text NOT NULL,
    term text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    id uuid NOT NULL,
    CONSTRAINT product_terms_pkey PRIMARY KEY (owner, term, created_at, id)
);

-- Returns the words of a text, folded and each once. A word ends at a space, a control character or
-- a mark.
CREATE FUNCTION product_words(said text) RETURNS text[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(array_agg(DISTINCT word), '{}') FROM regexp_split_to_table(
        lower(normalize(said, NFKC)),
        '[\u0001-\u002f\u003a-\u0040\u005b-\u0060\u007b-\u00bf\u2000-\u206f\u3000-\u3002]+') AS word
    WHERE word <> ''
$$;

-- Returns the words that a product is found by: those of its name and model, and the model without
-- what separates them.
CREATE FUNCTION product_words_of(name text, model text) RETURNS text[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT pipeline.product_words(name || ' ' || model || ' ' || regexp_replace(
        normalize(model, NFKC), '[\u0001-\u002f\u003a-\u0040\u005b-\u0060]+', '', 'g'))
$$;

-- Returns whether each of these words is the beginning of a word that a product is found by.
CREATE FUNCTION product_has_words(name text, model text, wanted text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT bool_and(EXISTS (SELECT FROM unnest(pipeline.product_words_of(name, model)) AS word
        WHERE starts_with(word, each))) FROM unnest(wanted) AS each
$$;

-- Returns the terms that a product is found by. Of a word these are its first 1 to 10, 12 and 16
-- characters. The plan takes longer to make than to run, so it is made once.
CREATE FUNCTION product_terms_of(p products) RETURNS SETOF text LANGUAGE plpgsql STABLE ROWS 40
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    shelf text := CASE WHEN p.deleted_at IS NOT NULL THEN '2' WHEN p.archived_at IS NOT NULL THEN '1' ELSE '0' END;
BEGIN
    RETURN QUERY SELECT shelf || 's' || p.state UNION ALL SELECT shelf || 'm' || p.market_provider
        UNION ALL (
            SELECT DISTINCT shelf || 'w' || left(word, size)
            FROM unnest(pipeline.product_words_of(p.name, p.model)) AS word,
                unnest('{1,2,3,4,5,6,7,8,9,10,12,16}'::integer[]) AS size
            WHERE length(word) >= size);
END $$;

CREATE FUNCTION follow_product_in_terms() RETURNS trigger LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    before text[] := '{}';
    after_ text[] := '{}';
BEGIN
    IF TG_OP <> 'INSERT' THEN
        before := ARRAY(SELECT term FROM pipeline.product_terms_of(OLD) AS term);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        after_ := ARRAY(SELECT term FROM pipeline.product_terms_of(NEW) AS term);
    END IF;
    IF before <> '{}' THEN
        DELETE FROM pipeline.product_terms WHERE owner = OLD.owner AND term = ANY (before) AND term <> ALL (after_)
            AND created_at = OLD.created_at AND id = OLD.id;
    END IF;
    IF after_ <> '{}' THEN
        INSERT INTO pipeline.product_terms (owner, term, created_at, id)
            SELECT NEW.owner, term, NEW.created_at, NEW.id FROM unnest(after_) AS term WHERE term <> ALL (before);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER products_terms_added AFTER INSERT ON products
    FOR EACH ROW EXECUTE FUNCTION follow_product_in_terms();
CREATE TRIGGER products_terms_changed AFTER UPDATE ON products FOR EACH ROW
    WHEN ((OLD.name, OLD.model, OLD.market_provider, OLD.archived_at IS NULL, OLD.deleted_at IS NULL)
        IS DISTINCT FROM (NEW.name, NEW.model, NEW.market_provider, NEW.archived_at IS NULL, NEW.deleted_at IS NULL))
    EXECUTE FUNCTION follow_product_in_terms();
CREATE TRIGGER products_terms_gone AFTER DELETE ON products
    FOR EACH ROW EXECUTE FUNCTION follow_product_in_terms();

-- A product's state changes ten times as often as all else, and changes one term.
CREATE FUNCTION follow_product_state_in_terms() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    shelf text := CASE WHEN OLD.deleted_at IS NOT NULL THEN '2' WHEN OLD.archived_at IS NOT NULL THEN '1' ELSE '0' END;
BEGIN
    UPDATE pipeline.product_terms SET term = shelf || 's' || NEW.state
        WHERE owner = OLD.owner AND term = shelf || 's' || OLD.state AND created_at = OLD.created_at AND id = OLD.id;
    RETURN NULL;
END $$;
CREATE TRIGGER products_terms_moved AFTER UPDATE ON products FOR EACH ROW
    WHEN (OLD.state <> NEW.state
        AND (OLD.name, OLD.model, OLD.market_provider, OLD.archived_at IS NULL, OLD.deleted_at IS NULL)
        IS NOT DISTINCT FROM (NEW.name, NEW.model, NEW.market_provider, NEW.archived_at IS NULL, NEW.deleted_at IS NULL))
    EXECUTE FUNCTION follow_product_state_in_terms();

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
    -- Whether only an outside worker may claim it.
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
    -- A phase before this one was run again, and this one not yet.
    stale boolean NOT NULL DEFAULT false,
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
-- Leases of outside workers, for the reaper.
CREATE INDEX phases_leases ON phases (lease_expires_at) WHERE state = 'running' AND external;
-- What ClaimNextPhase looks through, the oldest product first.
CREATE INDEX phases_outside ON phases (owner, created_at, id)
    WHERE external AND state IN ('pending', 'running');

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
    -- Every value with its source; see sources.Finding.
    findings jsonb NOT NULL DEFAULT '[]',
    -- When what the phase was given was read, or before.
    inputs_at timestamptz NOT NULL DEFAULT now(),
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
    -- The findings of the model's value; once decided, with what the person confirmed.
    findings jsonb NOT NULL DEFAULT '[]',
    -- When it should be decided; NULL: no time is set.
    due_at timestamptz,
    -- How many persons have to say the same, and how many have decided.
    decisions_needed smallint NOT NULL DEFAULT 1,
    decisions_made smallint NOT NULL DEFAULT 0,
    disputed boolean NOT NULL DEFAULT false,
    -- Whether the model was sure enough, and a person looks all the same.
    sample boolean NOT NULL DEFAULT false,
    CONSTRAINT reviews_pkey PRIMARY KEY (id),
    CONSTRAINT reviews_owner_id UNIQUE (owner, id),
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
CREATE INDEX reviews_list_phase ON reviews (owner, phase, created_at DESC, id DESC);
-- What NextReview hands out, in its order, and what the metrics count.
CREATE INDEX reviews_next ON reviews (owner, due_at, created_at, id) WHERE state = 'open';
CREATE INDEX reviews_held ON reviews (owner, claimed_by) WHERE state = 'open' AND claimed_by <> '';

-- What each person decided about a review. Rows are only added.
CREATE TABLE review_decisions (
    id uuid NOT NULL,
    owner text NOT NULL,
    review_id uuid NOT NULL,
    decided_by text NOT NULL,
    decision text NOT NULL,
    note text NOT NULL,
    reviewer_value jsonb,
    effective_value jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT review_decisions_pkey PRIMARY KEY (id),
    CONSTRAINT review_decisions_once UNIQUE (review_id, decided_by),
    CONSTRAINT review_decisions_review FOREIGN KEY (owner, review_id) REFERENCES reviews (owner, id) ON DELETE CASCADE,
    CONSTRAINT review_decisions_decision CHECK (decision IN ('approve', 'edit', 'reject', 'send_back')),
    CONSTRAINT review_decisions_effective CHECK ((decision IN ('approve', 'edit')) = (effective_value IS NOT NULL))
);
CREATE INDEX review_decisions_list ON review_decisions (owner, review_id, created_at DESC, id DESC);

-- A narrow row per result with a confidence, so that counting reads no values. It outlives its
-- product. Its id is that of its review, if there is one.
CREATE TABLE rated_results (
    id uuid NOT NULL,
    owner text NOT NULL,
    phase smallint NOT NULL,
    provider text NOT NULL,
    confidence double precision NOT NULL,
    -- Whether the confidence reached the threshold of then, so that only a sample was reviewed.
    confident boolean NOT NULL,
    -- What a person made of it; empty: nobody has decided.
    verdict text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT rated_results_pkey PRIMARY KEY (id),
    CONSTRAINT rated_results_phase CHECK (phase BETWEEN 1 AND 4),
    CONSTRAINT rated_results_verdict CHECK (verdict IN ('', 'right', 'wrong'))
);
CREATE INDEX rated_results_owner ON rated_results (owner, created_at);
CREATE INDEX rated_results_time ON rated_results (created_at);

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
-- What is kept no longer, by level.
CREATE INDEX logs_kept ON logs (owner, level, created_at);

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
    ON price_book_entries (owner, brand_key, model_key, name_key, marketplace_key, currency);
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

ALTER TABLE product_drafts ENABLE ROW LEVEL SECURITY;
ALTER TABLE product_drafts FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON product_drafts TO pipeline_app, pipeline_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker looks for drafts that stayed behind.
CREATE POLICY discarding ON product_drafts FOR SELECT TO pipeline_worker USING (true);
ALTER TABLE product_releases ENABLE ROW LEVEL SECURITY;
ALTER TABLE product_releases FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON product_releases TO pipeline_app, pipeline_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker reads the owner of a purged product here.
CREATE POLICY claiming ON product_releases FOR SELECT TO pipeline_worker USING (true);

ALTER TABLE product_terms ENABLE ROW LEVEL SECURITY;
ALTER TABLE product_terms FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON product_terms TO pipeline_app, pipeline_worker
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
-- A worker counts the open reviews of all owners for the metrics.
CREATE POLICY counting ON reviews FOR SELECT TO pipeline_worker USING (state = 'open');

ALTER TABLE review_decisions ENABLE ROW LEVEL SECURITY;
ALTER TABLE review_decisions FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON review_decisions TO pipeline_app, pipeline_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE rated_results ENABLE ROW LEVEL SECURITY;
ALTER TABLE rated_results FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rated_results TO pipeline_app, pipeline_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- Admins read the report of all owners.
CREATE POLICY operating ON rated_results FOR SELECT TO pipeline_app
    USING (current_setting('app.operator', true) = 'on');

ALTER TABLE logs ENABLE ROW LEVEL SECURITY;
ALTER TABLE logs FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON logs TO pipeline_app, pipeline_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE price_book_entries ENABLE ROW LEVEL SECURITY;
ALTER TABLE price_book_entries FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON price_book_entries TO pipeline_app, pipeline_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

-- Every table that a call or a phase adds to refuses rows of an erased owner.
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON products
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON product_drafts
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON results
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON reviews
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON review_decisions
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON rated_results
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON logs
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON price_book_entries
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();

-- Phases that are paused for every owner.
CREATE TABLE phase_pauses (
    phase smallint NOT NULL,
    reason text NOT NULL,
    paused_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    ends_at timestamptz,
    CONSTRAINT phase_pauses_pkey PRIMARY KEY (phase),
    CONSTRAINT phase_pauses_phase CHECK (phase BETWEEN 1 AND 4)
);
ALTER TABLE phase_pauses ENABLE ROW LEVEL SECURITY;
ALTER TABLE phase_pauses FORCE ROW LEVEL SECURITY;
-- The contract lets operators alone pause one.
CREATE POLICY pausing ON phase_pauses TO pipeline_app, pipeline_worker USING (true);

-- Results that others replaced. Rows are only added, by a trigger.
CREATE TABLE past_results (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    owner text NOT NULL,
    product_id uuid NOT NULL,
    phase smallint NOT NULL,
    value jsonb NOT NULL,
    confidence double precision,
    source text NOT NULL,
    provider text NOT NULL,
    made_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    evidence jsonb NOT NULL DEFAULT '[]',
    findings jsonb NOT NULL DEFAULT '[]',
    CONSTRAINT past_results_pkey PRIMARY KEY (id),
    CONSTRAINT past_results_product FOREIGN KEY (owner, product_id) REFERENCES products (owner, id) ON DELETE CASCADE
);
CREATE INDEX past_results_list ON past_results (product_id, phase, created_at DESC, id DESC);
ALTER TABLE past_results ENABLE ROW LEVEL SECURITY;
ALTER TABLE past_results FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON past_results TO pipeline_app, pipeline_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

CREATE FUNCTION keep_past_result() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO pipeline.past_results (owner, product_id, phase, value, confidence, source, provider, made_at, evidence, findings)
        VALUES (OLD.owner, OLD.product_id, OLD.phase, OLD.value, OLD.confidence, OLD.source, OLD.provider, OLD.updated_at,
            OLD.evidence, OLD.findings);
    RETURN NULL;
END $$;
CREATE TRIGGER keep_past_result AFTER UPDATE ON results FOR EACH ROW EXECUTE FUNCTION keep_past_result();

-- When an outside runner of the deployment last claimed a phase of an owner: owners take turns.
CREATE TABLE outside_turns (
    owner text NOT NULL,
    claimed_at timestamptz NOT NULL,
    CONSTRAINT outside_turns_pkey PRIMARY KEY (owner)
);
ALTER TABLE outside_turns ENABLE ROW LEVEL SECURITY;
ALTER TABLE outside_turns FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON outside_turns TO pipeline_app, pipeline_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

-- A runner of the deployment claims phases of all owners. The statement that looks for the owner whose
-- turn it is, or for the owner of a claimed phase, sets app.claiming and reads owners alone; the
-- transaction then acts for one owner.
CREATE POLICY turns ON outside_turns FOR SELECT TO pipeline_app
    USING ((SELECT current_setting('app.claiming', true) = 'on'));
CREATE POLICY outside ON phases FOR SELECT TO pipeline_app
    USING ((SELECT current_setting('app.claiming', true) = 'on') AND external);
CREATE POLICY outside ON attempts FOR SELECT TO pipeline_app
    USING ((SELECT current_setting('app.claiming', true) = 'on') AND starts_with(worker, 'outside:'));
