ALTER TABLE products ADD COLUMN archived_at timestamptz;
ALTER TABLE products ADD COLUMN deleted_at timestamptz;
ALTER TABLE products ADD COLUMN expires_at timestamptz;
ALTER TABLE products ADD COLUMN restated jsonb NOT NULL DEFAULT '{}';
ALTER TABLE products ADD CONSTRAINT products_trash CHECK ((deleted_at IS NULL) = (expires_at IS NULL));
DROP INDEX products_list;
CREATE INDEX products_list ON products (owner, created_at DESC, id DESC)
    INCLUDE (state, running, archived_at, deleted_at, nothing_found);
CREATE INDEX products_shown ON products (owner, created_at DESC, id DESC)
    WHERE archived_at IS NULL AND deleted_at IS NULL;
CREATE INDEX products_shown_state ON products (owner, state, created_at DESC, id DESC)
    WHERE archived_at IS NULL AND deleted_at IS NULL;
CREATE INDEX products_trash ON products (expires_at) WHERE expires_at IS NOT NULL;

ALTER TABLE product_images ADD COLUMN file_name text NOT NULL DEFAULT '';
ALTER TABLE product_images ADD COLUMN size_bytes bigint;
ALTER TABLE product_images ADD COLUMN mime_type text NOT NULL DEFAULT '';
ALTER TABLE product_images ADD COLUMN width integer;
ALTER TABLE product_images ADD COLUMN height integer;

CREATE TABLE product_releases (
    id uuid NOT NULL,
    owner text NOT NULL,
    product_id uuid NOT NULL,
    asset_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT product_releases_pkey PRIMARY KEY (product_id, id)
);

CREATE TABLE product_terms (
    owner text NOT NULL,
    term text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    id uuid NOT NULL,
    CONSTRAINT product_terms_pkey PRIMARY KEY (owner, term, created_at, id)
);

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

-- Products of before, whatever time it takes. The owner of the tables sees no rows while row-level security is forced.
SET LOCAL statement_timeout = 0;
ALTER TABLE products NO FORCE ROW LEVEL SECURITY;
INSERT INTO product_terms (owner, term, created_at, id)
    SELECT p.owner, term, p.created_at, p.id FROM products p CROSS JOIN LATERAL product_terms_of(p) AS term;
ALTER TABLE products FORCE ROW LEVEL SECURITY;

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
