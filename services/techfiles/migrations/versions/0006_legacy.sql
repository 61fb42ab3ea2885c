ALTER TABLE tech_files ADD COLUMN origin text NOT NULL DEFAULT '';
ALTER TABLE tech_files ADD CONSTRAINT tech_files_origin CHECK (origin IN ('', 'legacy'));

-- Whether finished analyses of base views are written to an older application's table, too: a row says so. Workers keep
-- it as the settings say.
CREATE TABLE legacy_switch (
    one boolean NOT NULL DEFAULT true,
    since timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT legacy_switch_pkey PRIMARY KEY (one),
    CONSTRAINT legacy_switch_one CHECK (one)
);
ALTER TABLE legacy_switch ENABLE ROW LEVEL SECURITY;
ALTER TABLE legacy_switch FORCE ROW LEVEL SECURITY;
CREATE POLICY reading ON legacy_switch FOR SELECT TO techfiles_app USING (true);
CREATE POLICY switching ON legacy_switch TO techfiles_worker USING (true);

-- Tech files whose analysis is to be written to that table. The row leaves when it is written.
CREATE TABLE legacy_writes (
    tech_file_id uuid NOT NULL,
    owner text NOT NULL,
    -- A change of the file asks anew; what was written of the file before that doesn't count.
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    since timestamptz NOT NULL DEFAULT now(),
    next_at timestamptz NOT NULL DEFAULT now(),
    attempts integer NOT NULL DEFAULT 0,
    problem text NOT NULL DEFAULT '',
    CONSTRAINT legacy_writes_pkey PRIMARY KEY (tech_file_id),
    CONSTRAINT legacy_writes_file FOREIGN KEY (owner, tech_file_id) REFERENCES tech_files (owner, id) ON DELETE CASCADE
);
CREATE INDEX legacy_writes_next ON legacy_writes (next_at);
ALTER TABLE legacy_writes ENABLE ROW LEVEL SECURITY;
ALTER TABLE legacy_writes FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON legacy_writes TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY operating ON legacy_writes FOR SELECT TO techfiles_app
    USING (starts_with(current_setting('app.owner_id', true), 'admin:'));
CREATE POLICY writing ON legacy_writes FOR SELECT TO techfiles_worker USING (true);

CREATE FUNCTION ask_for_legacy_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM techfiles.legacy_switch) THEN
        INSERT INTO techfiles.legacy_writes (tech_file_id, owner) VALUES (NEW.id, NEW.owner)
        ON CONFLICT (tech_file_id) DO UPDATE
            SET asked_at = clock_timestamp(), next_at = now(), attempts = 0, problem = '';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER ask_for_legacy_write AFTER INSERT ON tech_files FOR EACH ROW
    WHEN (NEW.file_type = 'base_view' AND NEW.state = 'completed' AND NEW.analysis IS NOT NULL AND NEW.origin = '')
    EXECUTE FUNCTION ask_for_legacy_write();
CREATE TRIGGER ask_for_legacy_rewrite AFTER UPDATE OF state, analysis ON tech_files FOR EACH ROW
    WHEN (NEW.file_type = 'base_view' AND NEW.state = 'completed' AND NEW.analysis IS NOT NULL AND NEW.origin = ''
        AND (OLD.state <> 'completed' OR OLD.analysis IS DISTINCT FROM NEW.analysis))
    EXECUTE FUNCTION ask_for_legacy_write();

-- Walks over an older application's table, which make tech files of its rows. `reached`: the id of the last row that was
-- looked at.
CREATE TABLE legacy_backfills (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    dry_run boolean NOT NULL,
    state text NOT NULL DEFAULT 'pending',
    version bigint NOT NULL DEFAULT 1,
    attempt_token uuid,
    attempt_number integer NOT NULL DEFAULT 0,
    cancel_requested boolean NOT NULL DEFAULT false,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    reached text,
    total bigint,
    examined bigint NOT NULL DEFAULT 0,
    made bigint NOT NULL DEFAULT 0,
    archived bigint NOT NULL DEFAULT 0,
    present bigint NOT NULL DEFAULT 0,
    erased bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    failures jsonb NOT NULL DEFAULT '[]',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Attempts that ended in a fault, and in a loss, since the job last made progress.
    faults integer NOT NULL DEFAULT 0,
    losses integer NOT NULL DEFAULT 0,
    -- What the job waits for, away or full, and since when; see shared/background/attempts.py.
    waits_for text NOT NULL DEFAULT '',
    waiting_since timestamptz,
    CONSTRAINT legacy_backfills_pkey PRIMARY KEY (id),
    CONSTRAINT legacy_backfills_state CHECK (state IN ('pending', 'running', 'done', 'failed', 'cancelled')),
    CONSTRAINT legacy_backfills_wait CHECK ((waits_for = '') = (waiting_since IS NULL))
);
CREATE INDEX legacy_backfills_waiting ON legacy_backfills (waiting_since) WHERE waiting_since IS NOT NULL;
-- One backfill at a time: two would make a row's tech file twice.
CREATE UNIQUE INDEX legacy_backfills_one ON legacy_backfills ((true)) WHERE state IN ('pending', 'running');
CREATE INDEX legacy_backfills_list ON legacy_backfills (created_at DESC, id DESC);
ALTER TABLE legacy_backfills ENABLE ROW LEVEL SECURITY;
ALTER TABLE legacy_backfills FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON legacy_backfills TO techfiles_app, techfiles_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- Operators see and cancel each other's backfills.
CREATE POLICY operating ON legacy_backfills TO techfiles_app
    USING (starts_with(current_setting('app.owner_id', true), 'admin:'));
CREATE POLICY walking ON legacy_backfills TO techfiles_worker USING (true);
CREATE TRIGGER refuse_erased_owner BEFORE INSERT ON legacy_backfills
    FOR EACH ROW EXECUTE FUNCTION refuse_erased_owner();
