-- Copies of pictures with a visible label. Nothing else says of which picture a copy was made.
CREATE TABLE picture_copies (
    owner text NOT NULL,
    copy_asset_id uuid NOT NULL,
    asset_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT picture_copies_pkey PRIMARY KEY (owner, copy_asset_id)
);
CREATE INDEX picture_copies_asset ON picture_copies (owner, asset_id, copy_asset_id);

ALTER TABLE picture_copies ENABLE ROW LEVEL SECURITY;
ALTER TABLE picture_copies FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON picture_copies TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
