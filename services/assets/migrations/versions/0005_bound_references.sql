ALTER TABLE asset_references ADD COLUMN service text NOT NULL DEFAULT '';
-- Its policies are for those who serve; the owner of the table, who migrates, would see no row. Until
-- now only a holder's name told whose it is: services take names of these forms.
ALTER TABLE asset_references NO FORCE ROW LEVEL SECURITY;
UPDATE asset_references SET service = split_part(holder, '/', 1)
WHERE holder ~ '^conversions/(conversions|generations|analyses|datasets)/[0-9a-f-]{36}$'
    OR holder ~ '^pipeline/products/[0-9a-f-]{36}$'
    OR holder ~ '^techfiles/products/.'
    OR holder ~ '^assets/(documents|comparisons)/[0-9a-f-]{36}$' OR holder ~ '^assets/styles/.';
ALTER TABLE asset_references FORCE ROW LEVEL SECURITY;
ALTER TABLE asset_references DROP CONSTRAINT asset_references_pkey,
    ADD CONSTRAINT asset_references_pkey PRIMARY KEY (asset_id, owner, holder, service);
