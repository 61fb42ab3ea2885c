ALTER TABLE products ADD COLUMN condition text NOT NULL DEFAULT '';
ALTER TABLE products ADD COLUMN condition_details text NOT NULL DEFAULT '';
ALTER TABLE product_images ADD COLUMN source_url text NOT NULL DEFAULT '';
ALTER TABLE results ADD COLUMN findings jsonb NOT NULL DEFAULT '[]';
ALTER TABLE reviews ADD COLUMN findings jsonb NOT NULL DEFAULT '[]';

-- A product that isn't there yet, whose images are being brought to `assets`.
CREATE TABLE product_drafts (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Its images are being purged: no product is made of it any more.
    given_up boolean NOT NULL DEFAULT false,
    CONSTRAINT product_drafts_pkey PRIMARY KEY (id)
);
CREATE INDEX product_drafts_oldest ON product_drafts (created_at);
ALTER TABLE product_drafts ENABLE ROW LEVEL SECURITY;
ALTER TABLE product_drafts FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON product_drafts TO {service}_app, {service}_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker looks for drafts that stayed behind.
CREATE POLICY discarding ON product_drafts FOR SELECT TO {service}_worker USING (true);
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON product_drafts
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
