ALTER TABLE erased_owners ADD COLUMN counts jsonb NOT NULL DEFAULT '{}', ADD COLUMN done_at timestamptz,
    ADD COLUMN reported_at timestamptz;
CREATE INDEX erased_owners_open ON erased_owners (erased_at) WHERE done_at IS NULL OR reported_at IS NULL;
ALTER POLICY folding ON erased_owners RENAME TO erasing;
CREATE POLICY operating ON erased_owners FOR SELECT TO assets_app
    USING (current_setting('app.operator', true) = 'on');

-- Services that follow erasures, and when each was last heard of.
CREATE TABLE erasure_services (
    service text NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT erasure_services_pkey PRIMARY KEY (service)
);

-- How far each of these services is with the erasure of an owner. `begun_at`: since when it refuses
-- new rows of the owner, by its own tombstone; another time is that of another erasure, after a
-- backup of the service was restored. `counts`: what it erased and kept.
CREATE TABLE erasure_parts (
    owner text NOT NULL,
    service text NOT NULL,
    state text NOT NULL DEFAULT 'waiting',
    begun_at timestamptz,
    counts jsonb NOT NULL DEFAULT '{}',
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT erasure_parts_pkey PRIMARY KEY (owner, service),
    CONSTRAINT erasure_parts_state CHECK (state IN ('waiting', 'erasing', 'done')),
    CONSTRAINT erasure_parts_begun CHECK ((state = 'waiting') = (begun_at IS NULL))
);
CREATE INDEX erasure_parts_waiting ON erasure_parts (service, owner) WHERE state = 'waiting';

ALTER TABLE erasure_services ENABLE ROW LEVEL SECURITY;
ALTER TABLE erasure_services FORCE ROW LEVEL SECURITY;
-- It holds nothing of any owner.
CREATE POLICY following ON erasure_services TO assets_app, assets_worker USING (true);

ALTER TABLE erasure_parts ENABLE ROW LEVEL SECURITY;
ALTER TABLE erasure_parts FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON erasure_parts TO assets_app, assets_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A service that follows erasures sees those of every owner, in transactions that set app.operator.
CREATE POLICY operating ON erasure_parts TO assets_app USING (current_setting('app.operator', true) = 'on');

CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON backfills
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON comparisons
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON quotas
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
