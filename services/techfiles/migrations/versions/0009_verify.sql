-- A worker finds the slots that a check is to examine, of every owner.
CREATE POLICY checking ON slots FOR SELECT TO techfiles_worker USING (true);

-- Walks over slots that look for faults of their histories. `reached_...`: the last slot that was
-- examined, in the order (owner, id).
CREATE TABLE history_checks (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    all_owners boolean NOT NULL,
    record_digests boolean NOT NULL,
    state text NOT NULL DEFAULT 'pending',
    version bigint NOT NULL DEFAULT 1,
    attempt_token uuid,
    attempt_number integer NOT NULL DEFAULT 0,
    cancel_requested boolean NOT NULL DEFAULT false,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    reached_owner text NOT NULL DEFAULT '',
    reached_slot uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    total_slots bigint,
    examined_slots bigint NOT NULL DEFAULT 0,
    examined_rows bigint NOT NULL DEFAULT 0,
    findings bigint NOT NULL DEFAULT 0,
    uncheckable bigint NOT NULL DEFAULT 0,
    recorded bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Attempts that ended in a fault, and in a loss, since the job last made progress.
    faults integer NOT NULL DEFAULT 0,
    losses integer NOT NULL DEFAULT 0,
    -- What the job waits for, away or full, and since when; see shared/background/attempts.py.
    waits_for text NOT NULL DEFAULT '',
    waiting_since timestamptz,
    CONSTRAINT history_checks_pkey PRIMARY KEY (id),
    CONSTRAINT history_checks_state CHECK (state IN ('pending', 'running', 'done', 'failed', 'cancelled')),
    CONSTRAINT history_checks_wait CHECK ((waits_for = '') = (waiting_since IS NULL))
);
CREATE INDEX history_checks_waiting ON history_checks (waiting_since) WHERE waiting_since IS NOT NULL;
-- One check of an owner at a time, and one of all owners: the later findings replace the earlier.
CREATE UNIQUE INDEX history_checks_one ON history_checks (owner) WHERE state IN ('pending', 'running');
CREATE UNIQUE INDEX history_checks_one_of_all ON history_checks (all_owners)
    WHERE state IN ('pending', 'running') AND all_owners;
CREATE INDEX history_checks_list ON history_checks (owner, created_at DESC, id DESC);
CREATE INDEX history_checks_list_all ON history_checks (created_at DESC, id DESC);
ALTER TABLE history_checks ENABLE ROW LEVEL SECURITY;
ALTER TABLE history_checks FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON history_checks TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- Operators see and cancel the checks of everybody.
CREATE POLICY operating ON history_checks TO techfiles_app
    USING (starts_with(current_setting('app.owner_id', true), 'admin:'));
CREATE POLICY walking ON history_checks TO techfiles_worker USING (true);
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON history_checks
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();

-- One kind of fault in one slot. A finding belongs to the owner of the slot, and may outlive the
-- check, which may be an operator's. `repair`: what a repair writes, or has written.
CREATE TABLE history_findings (
    id uuid NOT NULL,
    owner text NOT NULL,
    check_id uuid NOT NULL,
    slot_id uuid NOT NULL,
    product_id text NOT NULL,
    file_type text NOT NULL,
    view_type text NOT NULL,
    file_category text NOT NULL,
    fault text NOT NULL,
    state text NOT NULL DEFAULT 'open',
    message text NOT NULL,
    advice text NOT NULL,
    repair jsonb NOT NULL DEFAULT '[]',
    repaired_by text NOT NULL DEFAULT '',
    repaired_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT history_findings_pkey PRIMARY KEY (id),
    CONSTRAINT history_findings_slot FOREIGN KEY (owner, slot_id) REFERENCES slots (owner, id),
    CONSTRAINT history_findings_fault CHECK (fault IN (
        'missing_numbers', 'repeated_numbers', 'last_number_low', 'several_latest', 'no_latest',
        'wrong_latest', 'missing_parent', 'foreign_parent', 'changed_snapshot', 'same_name')),
    CONSTRAINT history_findings_state CHECK (state IN ('open', 'superseded', 'repaired')),
    CONSTRAINT history_findings_repaired CHECK ((state = 'repaired') = (repaired_at IS NOT NULL))
);
CREATE UNIQUE INDEX history_findings_open ON history_findings (slot_id, fault) WHERE state = 'open';
CREATE INDEX history_findings_slot_id ON history_findings (slot_id);
CREATE INDEX history_findings_list_state ON history_findings (owner, state, created_at DESC, id DESC);
CREATE INDEX history_findings_list_check ON history_findings (check_id, state, created_at DESC, id DESC);
ALTER TABLE history_findings ENABLE ROW LEVEL SECURITY;
ALTER TABLE history_findings FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON history_findings TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY operating ON history_findings FOR SELECT TO techfiles_app
    USING (starts_with(current_setting('app.owner_id', true), 'admin:'));
-- A worker counts the open findings of all owners for the metrics.
CREATE POLICY counting ON history_findings FOR SELECT TO {service}_worker USING (state = 'open');
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON history_findings
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
