-- Many conversions or generations are asked for at once.

ALTER TABLE conversions
    ADD COLUMN batch_id uuid,
    ADD COLUMN batch_item integer;
ALTER TABLE generations
    ADD COLUMN batch_id uuid,
    ADD COLUMN batch_item integer;

-- A batch: conversions or generations that are asked for, paid for and stopped together. Its items are
-- rows of the table `job`; `made` says how many of them exist, in the order of their numbers.
CREATE TABLE batches (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    name text NOT NULL,
    job text NOT NULL,
    total integer NOT NULL,
    made integer NOT NULL DEFAULT 0,
    priority smallint NOT NULL,
    provider text NOT NULL,
    -- The most that all items together may cost; NULL: no limit.
    max_credits bigint,
    state text NOT NULL DEFAULT 'running',
    pause_reason text NOT NULL DEFAULT '',
    pause_message text NOT NULL DEFAULT '',
    -- True while waiting items may lack their job in the queue, because the batch was paused.
    held boolean NOT NULL DEFAULT false,
    -- The place before the owner's other jobs, higher first; 0: among them.
    front integer NOT NULL DEFAULT 0,
    -- The number of the job that conducts the batch: a job with an older one ends.
    round integer NOT NULL DEFAULT 0,
    -- Items that failed until then are to be tried again: those of these error classes, or all.
    retry_until timestamptz,
    retry_classes text[] NOT NULL DEFAULT '{}',
    -- What was counted last, see Figures in batch_rows.py.
    figures jsonb NOT NULL DEFAULT '{}',
    ended_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT batches_pkey PRIMARY KEY (id),
    CONSTRAINT batches_owner_id UNIQUE (owner, id),
    CONSTRAINT batches_job CHECK (job IN ('conversions', 'generations')),
    CONSTRAINT batches_state CHECK (state IN ('running', 'paused', 'completed', 'cancelled')),
    CONSTRAINT batches_pause_reason CHECK (pause_reason IN ('', 'requested', 'credits_exhausted', 'budget_exceeded', 'max_credits', 'consent', 'provider')),
    CONSTRAINT batches_paused CHECK ((state = 'paused') = (pause_reason <> '')),
    CONSTRAINT batches_made CHECK (made BETWEEN 0 AND total)
);
CREATE INDEX batches_list ON batches (owner, created_at DESC, id DESC);
CREATE INDEX batches_list_state ON batches (owner, state, created_at DESC, id DESC);
CREATE INDEX batches_open ON batches (state, pause_reason) WHERE state IN ('running', 'paused');

-- What a batch was asked for, and what was read of its pictures then; see batch_plans.py. Apart from
-- the batch, whose row is read and published often.
CREATE TABLE batch_plans (
    owner text NOT NULL,
    batch_id uuid NOT NULL,
    plan jsonb NOT NULL,
    CONSTRAINT batch_plans_pkey PRIMARY KEY (owner, batch_id),
    CONSTRAINT batch_plans_batch FOREIGN KEY (owner, batch_id) REFERENCES batches (owner, id) ON DELETE CASCADE
);

-- The pictures that the items of a batch are made from. Until it has ended they are needed, also for
-- items that aren't created yet.
CREATE TABLE batch_pictures (
    owner text NOT NULL,
    batch_id uuid NOT NULL,
    asset_id uuid NOT NULL,
    CONSTRAINT batch_pictures_pkey PRIMARY KEY (owner, batch_id, asset_id),
    CONSTRAINT batch_pictures_batch FOREIGN KEY (owner, batch_id) REFERENCES batches (owner, id) ON DELETE CASCADE
);
CREATE INDEX batch_pictures_asset ON batch_pictures (owner, asset_id);

-- Items that were purged: they still count in their batch, and what they cost in its max_credits. A row
-- is added without a lock of the batch's row but one that keeps it from being deleted.
CREATE TABLE purged_items (
    owner text NOT NULL,
    batch_id uuid NOT NULL,
    batch_item integer NOT NULL,
    state text NOT NULL,
    error_class text NOT NULL,
    credits bigint NOT NULL,
    CONSTRAINT purged_items_pkey PRIMARY KEY (owner, batch_id, batch_item),
    CONSTRAINT purged_items_batch FOREIGN KEY (owner, batch_id) REFERENCES batches (owner, id) ON DELETE CASCADE,
    CONSTRAINT purged_items_state CHECK (state IN ('completed', 'failed', 'cancelled'))
);

CREATE FUNCTION note_purged_item() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM conversions.batches WHERE owner = OLD.owner AND id = OLD.batch_id FOR KEY SHARE;
    IF FOUND THEN
        INSERT INTO conversions.purged_items (owner, batch_id, batch_item, state, error_class, credits)
        VALUES (OLD.owner, OLD.batch_id, OLD.batch_item, OLD.state, OLD.error_class, OLD.credits);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER note_purged_item AFTER DELETE ON conversions FOR EACH ROW
    WHEN (OLD.batch_item IS NOT NULL AND OLD.state IN ('completed', 'failed', 'cancelled'))
    EXECUTE FUNCTION note_purged_item();
CREATE TRIGGER note_purged_item AFTER DELETE ON generations FOR EACH ROW
    WHEN (OLD.batch_item IS NOT NULL AND OLD.state IN ('completed', 'failed', 'cancelled'))
    EXECUTE FUNCTION note_purged_item();

-- An item that fails so pauses its batch (job_moves.py). The batch is locked before the account of
-- credits, as it is everywhere: triggers run in the order of their names, and settle_credits locks that.
CREATE FUNCTION lock_batch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM conversions.batches WHERE owner = NEW.owner AND id = NEW.batch_id FOR NO KEY UPDATE;
    RETURN NEW;
END $$;
CREATE TRIGGER lock_batch BEFORE UPDATE OF state ON conversions FOR EACH ROW
    WHEN (NEW.batch_id IS NOT NULL AND NEW.state = 'failed' AND NEW.error_class IN ('BUDGET_EXCEEDED', 'CONSENT'))
    EXECUTE FUNCTION lock_batch();
CREATE TRIGGER lock_batch BEFORE UPDATE OF state ON generations FOR EACH ROW
    WHEN (NEW.batch_id IS NOT NULL AND NEW.state = 'failed' AND NEW.error_class IN ('BUDGET_EXCEEDED', 'CONSENT'))
    EXECUTE FUNCTION lock_batch();

-- Whatever happens to a worker, no item has two rows.
CREATE UNIQUE INDEX conversions_batch_item ON conversions (owner, batch_id, batch_item) WHERE batch_item IS NOT NULL;
CREATE UNIQUE INDEX generations_batch_item ON generations (owner, batch_id, batch_item) WHERE batch_item IS NOT NULL;
CREATE INDEX conversions_list_batch ON conversions (owner, batch_id, created_at DESC, id DESC) WHERE batch_id IS NOT NULL;
CREATE INDEX generations_list_batch ON generations (owner, batch_id, created_at DESC, id DESC) WHERE batch_id IS NOT NULL;

ALTER TABLE batches ENABLE ROW LEVEL SECURITY;
ALTER TABLE batches FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON batches TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- A worker reads a batch's owner from its row.
CREATE POLICY claiming ON batches FOR SELECT TO conversions_worker USING (true);

ALTER TABLE batch_plans ENABLE ROW LEVEL SECURITY;
ALTER TABLE batch_plans FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON batch_plans TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE batch_pictures ENABLE ROW LEVEL SECURITY;
ALTER TABLE batch_pictures FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON batch_pictures TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE purged_items ENABLE ROW LEVEL SECURITY;
ALTER TABLE purged_items FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON purged_items TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
