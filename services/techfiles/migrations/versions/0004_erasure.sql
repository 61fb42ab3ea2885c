-- Tombstones of erased owners, for whom nothing new is kept. `counts` has what was erased here and kept, until `done_at`;
-- then assets is told. In assets itself these columns stay empty: there storage_runs has the report.
CREATE TABLE erased_owners (
    owner text NOT NULL,
    erased_at timestamptz NOT NULL DEFAULT now(),
    counts jsonb NOT NULL DEFAULT '{}',
    done_at timestamptz,
    reported_at timestamptz,
    CONSTRAINT erased_owners_pkey PRIMARY KEY (owner)
);
CREATE INDEX erased_owners_open ON erased_owners (erased_at) WHERE done_at IS NULL OR reported_at IS NULL;

-- Refuses rows of an erased owner. An erasure takes the same lock exclusively, so that a concurrent row is committed
-- before the erasure begins, or refused.
CREATE FUNCTION refuse_erased_owner() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended(NEW.owner, 11));
    IF EXISTS (SELECT FROM {service}.erased_owners e WHERE e.owner = NEW.owner) THEN
        RAISE EXCEPTION 'the owner was erased' USING ERRCODE = 'check_violation', CONSTRAINT = 'owner_not_erased';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON webhook_endpoints
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();

ALTER TABLE erased_owners ENABLE ROW LEVEL SECURITY;
ALTER TABLE erased_owners FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON erased_owners TO {service}_app, {service}_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- An operator who adds something for an erased owner is refused, too.
CREATE POLICY operating ON erased_owners FOR SELECT TO {service}_app
    USING (current_setting('app.operator', true) = 'on');
-- Workers look for erasures to be carried out, and skip erased owners in work for all owners.
CREATE POLICY erasing ON erased_owners FOR SELECT TO {service}_worker USING (true);

-- Every table that a call or a run adds to refuses rows of an erased owner.
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON slots
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON collections
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON exports
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON tech_files
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON tech_file_versions
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON collection_items
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON collection_changes
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON runs
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON run_steps
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
