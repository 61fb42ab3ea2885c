-- What is set aside for a job until it has ended, and the most that its request lets it cost.
ALTER TABLE conversions ADD COLUMN credits_reserved bigint NOT NULL DEFAULT 0;
ALTER TABLE conversions ADD COLUMN max_credits bigint;
ALTER TABLE conversions ADD CONSTRAINT conversions_reserved CHECK (credits_reserved = 0 OR (credits_reserved > 0 AND state IN ('pending', 'processing')));
ALTER TABLE generations ADD COLUMN credits_reserved bigint NOT NULL DEFAULT 0;
ALTER TABLE generations ADD COLUMN max_credits bigint;
ALTER TABLE generations ADD CONSTRAINT generations_reserved CHECK (credits_reserved = 0 OR (credits_reserved > 0 AND state IN ('pending', 'processing')));
ALTER TABLE analyses ADD COLUMN credits_reserved bigint NOT NULL DEFAULT 0;
ALTER TABLE analyses ADD COLUMN max_credits bigint;
ALTER TABLE analyses ADD CONSTRAINT analyses_reserved CHECK (credits_reserved = 0 OR (credits_reserved > 0 AND state IN ('pending', 'processing')));

-- An owner's account of credits: the sum of the owner's entries, and what counts against limits.
CREATE TABLE credit_accounts (
    owner text NOT NULL,
    -- What new jobs may reserve, and what is set aside for jobs that haven't ended.
    available bigint NOT NULL DEFAULT 0,
    reserved bigint NOT NULL DEFAULT 0,
    -- True while more is taken than there is: credits are only recorded. Only a statement that sets
    -- it may take an account below 0.
    may_owe boolean NOT NULL DEFAULT false,
    -- The last UTC day with a job or a paid call: what its jobs reserved, without what was released
    -- of it, and the estimated costs of its calls to providers.
    day date NOT NULL DEFAULT '2000-01-01',
    day_credits bigint NOT NULL DEFAULT 0,
    day_cost_micros bigint NOT NULL DEFAULT 0,
    -- The first day of the last UTC month with a free conversion, and their number in it.
    month date NOT NULL DEFAULT '2000-01-01',
    month_free integer NOT NULL DEFAULT 0,
    CONSTRAINT credit_accounts_pkey PRIMARY KEY (owner),
    CONSTRAINT credit_accounts_available CHECK (available >= 0 OR may_owe),
    CONSTRAINT credit_accounts_reserved CHECK (reserved >= 0),
    CONSTRAINT credit_accounts_counts CHECK (least(day_credits, day_cost_micros, month_free) >= 0)
);

-- The ledger. Entries are only added: no role has the right to change or delete one. Their texts are
-- apart, in credit_notes, so that an erasure can drop these and keep the figures.
CREATE TABLE credit_entries (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    owner text NOT NULL,
    kind text NOT NULL,
    -- Above 0, but for an adjustment that takes credits away.
    credits bigint NOT NULL,
    available_change bigint NOT NULL GENERATED ALWAYS AS (
        CASE kind WHEN 'reserve' THEN -credits WHEN 'commit' THEN 0 ELSE credits END) STORED,
    reserved_change bigint NOT NULL GENERATED ALWAYS AS (
        CASE kind WHEN 'reserve' THEN credits WHEN 'commit' THEN -credits WHEN 'release' THEN -credits ELSE 0 END) STORED,
    -- The job's table, id and task; empty and NULL for what an operator did. `attempt`: the attempts
    -- that the job had had by then, and `attempt_id` the last one, if it ended the job.
    job text NOT NULL DEFAULT '',
    job_id uuid,
    task text NOT NULL DEFAULT '',
    attempt integer NOT NULL DEFAULT 0,
    attempt_id uuid,
    -- The clock's time and not the transaction's, which may make several entries of one job.
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT credit_entries_pkey PRIMARY KEY (id),
    CONSTRAINT credit_entries_owner_id UNIQUE (owner, id),
    CONSTRAINT credit_entries_kind CHECK (kind IN ('grant', 'reserve', 'commit', 'release', 'adjust')),
    CONSTRAINT credit_entries_credits CHECK (credits > 0 OR (kind = 'adjust' AND credits <> 0)),
    CONSTRAINT credit_entries_job CHECK ((job_id IS NULL) = (kind = 'grant' OR kind = 'adjust')),
    CONSTRAINT credit_entries_named CHECK ((job_id IS NULL) = (job = '') AND (job = '') = (task = ''))
);
-- Nothing happens twice to a job, and it is charged at most once in its life.
CREATE UNIQUE INDEX credit_entries_once ON credit_entries (job_id, kind, attempt) WHERE job_id IS NOT NULL;
CREATE UNIQUE INDEX credit_entries_charged ON credit_entries (job_id) WHERE kind = 'commit';
CREATE INDEX credit_entries_list ON credit_entries (owner, created_at DESC, id DESC);
CREATE INDEX credit_entries_list_kind ON credit_entries (owner, kind, created_at DESC, id DESC);

-- Who made an entry and why, for entries of operators. `reference`: of a grant, unique per owner.
CREATE TABLE credit_notes (
    owner text NOT NULL,
    entry_id uuid NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    reference text NOT NULL,
    CONSTRAINT credit_notes_pkey PRIMARY KEY (owner, entry_id),
    CONSTRAINT credit_notes_entry FOREIGN KEY (owner, entry_id) REFERENCES credit_entries (owner, id)
);
CREATE UNIQUE INDEX credit_notes_reference ON credit_notes (owner, reference) WHERE reference <> '';

-- Limits of an owner, which an operator or the owner itself set; NULL: not set. After `expires_at`
-- they don't hold.
CREATE TABLE credit_budgets (
    owner text NOT NULL,
    set_by text NOT NULL,
    daily_credits bigint,
    daily_cost_micros bigint,
    monthly_free_conversions integer,
    expires_at timestamptz,
    updated_by text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT credit_budgets_pkey PRIMARY KEY (owner, set_by),
    CONSTRAINT credit_budgets_set_by CHECK (set_by IN ('operator', 'owner'))
);

-- Keeps the account the sum of its entries, whoever adds one. An UPDATE first: an INSERT of what is
-- taken away would break the account's constraints before it met the row that is there.
CREATE FUNCTION add_credit_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    LOOP
        UPDATE conversions.credit_accounts SET available = available + NEW.available_change,
            reserved = reserved + NEW.reserved_change, may_owe = may_owe AND available + NEW.available_change < 0
        WHERE owner = NEW.owner;
        EXIT WHEN FOUND;
        INSERT INTO conversions.credit_accounts (owner) VALUES (NEW.owner) ON CONFLICT (owner) DO NOTHING;
    END LOOP;
    RETURN NULL;
END $$;
CREATE TRIGGER add_credit_entry AFTER INSERT ON credit_entries
    FOR EACH ROW EXECUTE FUNCTION add_credit_entry();

-- The limits that hold for an owner now. The parameters are the settings' limits; NULL: none.
CREATE FUNCTION credit_limits(of_owner text, setting_credits bigint, setting_cost_micros bigint, setting_free integer)
RETURNS TABLE (daily_credits bigint, daily_cost_micros bigint, monthly_free_conversions integer)
LANGUAGE sql STABLE AS $$
    SELECT least(coalesce(max(b.daily_credits) FILTER (WHERE b.set_by = 'operator'), setting_credits),
                 max(b.daily_credits) FILTER (WHERE b.set_by = 'owner')),
           least(coalesce(max(b.daily_cost_micros) FILTER (WHERE b.set_by = 'operator'), setting_cost_micros),
                 max(b.daily_cost_micros) FILTER (WHERE b.set_by = 'owner')),
           coalesce(max(b.monthly_free_conversions) FILTER (WHERE b.set_by = 'operator'), setting_free)
    FROM conversions.credit_budgets b
    WHERE b.owner = of_owner AND (b.expires_at IS NULL OR b.expires_at > now())
$$;

-- Sets the price of a job aside, or counts a free conversion, at the end of the transaction that
-- inserts the job's row with the same `credits_reserved`: the account stays locked for a moment only.
-- Raises ATL01 if the job may not be created so: `credits` if the account doesn't cover it and credits
-- are enforced, `budget` if the day's budget doesn't, `paid` if the month's free quota is used up. The
-- detail has the figures as JSON. NULL in a setting: no limit.
CREATE FUNCTION reserve_credits(
    of_owner text, of_job text, of_id uuid, of_task text, price bigint, is_free boolean, enforced boolean,
    setting_credits bigint, setting_cost_micros bigint, setting_free integer
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
    this_month date := date_trunc('month', now() AT TIME ZONE 'UTC')::date;
    paid bigint := CASE WHEN is_free THEN 0 ELSE price END;
    account record;
    limits record;
    problem text;
BEGIN
    LOOP
        -- A transaction that began before midnight may come after one that began later.
        UPDATE conversions.credit_accounts a SET
            day = greatest(a.day, today), month = greatest(a.month, this_month),
            day_credits = CASE WHEN a.day < today THEN 0 ELSE a.day_credits END + paid,
            day_cost_micros = CASE WHEN a.day < today THEN 0 ELSE a.day_cost_micros END,
            month_free = CASE WHEN a.month < this_month THEN 0 ELSE a.month_free END + is_free::integer,
            may_owe = a.may_owe OR a.available < paid
        WHERE a.owner = of_owner
        RETURNING a.available, a.day_credits - paid AS spent, a.day_credits, a.month_free INTO account;
        EXIT WHEN FOUND;
        INSERT INTO conversions.credit_accounts (owner) VALUES (of_owner) ON CONFLICT (owner) DO NOTHING;
    END LOOP;
    SELECT l.daily_credits, l.monthly_free_conversions INTO limits
    FROM conversions.credit_limits(of_owner, setting_credits, setting_cost_micros, setting_free) l;
    problem := CASE
        WHEN is_free AND account.month_free > limits.monthly_free_conversions THEN 'paid'
        WHEN paid > 0 AND account.day_credits > limits.daily_credits THEN 'budget'
        WHEN paid > 0 AND enforced AND account.available < paid THEN 'credits'
    END;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'ATL01', MESSAGE = problem, DETAIL = json_build_object(
            'available', account.available, 'spent', account.spent, 'budget', limits.daily_credits);
    END IF;
    IF paid > 0 THEN
        INSERT INTO conversions.credit_entries (owner, kind, credits, job, job_id, task)
        VALUES (of_owner, 'reserve', paid, of_job, of_id, of_task);
    END IF;
END $$;

-- Counts the estimated cost of a call to a paid provider, unless it would exceed the day's budget.
-- `counted_on`: the day whose costs it is among.
CREATE FUNCTION count_provider_cost(
    of_owner text, cost_micros bigint, setting_credits bigint, setting_cost_micros bigint, setting_free integer
) RETURNS TABLE (allowed boolean, spent bigint, budget bigint, counted_on date)
LANGUAGE plpgsql AS $$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
BEGIN
    LOOP
        UPDATE conversions.credit_accounts a SET
            day = greatest(a.day, today),
            day_credits = CASE WHEN a.day < today THEN 0 ELSE a.day_credits END,
            day_cost_micros = CASE WHEN a.day < today THEN 0 ELSE a.day_cost_micros END + cost_micros
        WHERE a.owner = of_owner
        RETURNING a.day_cost_micros - cost_micros, a.day INTO spent, counted_on;
        EXIT WHEN FOUND;
        INSERT INTO conversions.credit_accounts (owner) VALUES (of_owner) ON CONFLICT (owner) DO NOTHING;
    END LOOP;
    SELECT l.daily_cost_micros INTO budget
    FROM conversions.credit_limits(of_owner, setting_credits, setting_cost_micros, setting_free) l;
    allowed := coalesce(spent + cost_micros <= budget, true);
    IF NOT allowed THEN
        UPDATE conversions.credit_accounts a SET day_cost_micros = spent WHERE a.owner = of_owner;
    END IF;
    RETURN NEXT;
END $$;

-- Settles what a job reserved, in the statement that ends or deletes it: what it cost is charged, at
-- most what was reserved, and the rest is released. Whatever ends a job, it is settled so, exactly
-- once. A free conversion without a result doesn't count in its month.
CREATE FUNCTION settle_credits() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    named text := TG_ARGV[0];
    rest bigint;
BEGIN
    IF TG_OP = 'DELETE' THEN
        NEW := OLD;
        NEW.credits := 0;
    END IF;
    NEW.credits := least(NEW.credits, OLD.credits_reserved);
    NEW.credits_reserved := 0;
    rest := OLD.credits_reserved - NEW.credits;
    IF named IS NULL THEN
        named := NEW.task;
    ELSIF NEW.free AND NOT NEW.external AND NEW.state <> 'completed' THEN
        UPDATE conversions.credit_accounts SET month_free = greatest(month_free - 1, 0)
        WHERE owner = NEW.owner AND month = date_trunc('month', NEW.created_at AT TIME ZONE 'UTC')::date;
    END IF;
    IF NEW.credits > 0 THEN
        INSERT INTO conversions.credit_entries (owner, kind, credits, job, job_id, task, attempt, attempt_id)
        VALUES (NEW.owner, 'commit', NEW.credits, TG_TABLE_NAME, NEW.id, named, NEW.attempt_number,
            coalesce(NEW.attempt_token, OLD.attempt_token));
    END IF;
    IF rest > 0 THEN
        UPDATE conversions.credit_accounts SET day_credits = day_credits - rest
        WHERE owner = NEW.owner AND day = (NEW.created_at AT TIME ZONE 'UTC')::date;
        INSERT INTO conversions.credit_entries (owner, kind, credits, job, job_id, task, attempt, attempt_id)
        VALUES (NEW.owner, 'release', rest, TG_TABLE_NAME, NEW.id, named, NEW.attempt_number,
            coalesce(NEW.attempt_token, OLD.attempt_token));
    END IF;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END $$;
CREATE TRIGGER settle_credits BEFORE UPDATE OF state ON conversions FOR EACH ROW
    WHEN (OLD.state IN ('pending', 'processing') AND NEW.state NOT IN ('pending', 'processing'))
    EXECUTE FUNCTION settle_credits('conversion');
CREATE TRIGGER settle_credits BEFORE UPDATE OF state ON generations FOR EACH ROW
    WHEN (OLD.state IN ('pending', 'processing') AND NEW.state NOT IN ('pending', 'processing'))
    EXECUTE FUNCTION settle_credits();
CREATE TRIGGER settle_credits BEFORE UPDATE OF state ON analyses FOR EACH ROW
    WHEN (OLD.state IN ('pending', 'processing') AND NEW.state NOT IN ('pending', 'processing'))
    EXECUTE FUNCTION settle_credits();
CREATE TRIGGER settle_deleted BEFORE DELETE ON conversions FOR EACH ROW
    WHEN (OLD.credits_reserved > 0) EXECUTE FUNCTION settle_credits('conversion');
CREATE TRIGGER settle_deleted BEFORE DELETE ON generations FOR EACH ROW
    WHEN (OLD.credits_reserved > 0) EXECUTE FUNCTION settle_credits();
CREATE TRIGGER settle_deleted BEFORE DELETE ON analyses FOR EACH ROW
    WHEN (OLD.credits_reserved > 0) EXECUTE FUNCTION settle_credits();
-- What the ledger's check adds up.
CREATE INDEX conversions_reserved ON conversions (owner, credits_reserved) WHERE credits_reserved > 0;
CREATE INDEX generations_reserved ON generations (owner, credits_reserved) WHERE credits_reserved > 0;
CREATE INDEX analyses_reserved ON analyses (owner, credits_reserved) WHERE credits_reserved > 0;

-- An operator reads and writes accounts across owners in transactions that set app.operator.
ALTER TABLE credit_accounts ENABLE ROW LEVEL SECURITY;
ALTER TABLE credit_accounts FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON credit_accounts TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY operating ON credit_accounts TO conversions_app USING (current_setting('app.operator', true) = 'on');
-- The check compares all accounts with their entries.
CREATE POLICY checking ON credit_accounts FOR SELECT TO conversions_worker USING (true);

-- No policy lets anybody change or delete an entry, and no right does.
ALTER TABLE credit_entries ENABLE ROW LEVEL SECURITY;
ALTER TABLE credit_entries FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON credit_entries FOR SELECT TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY adding ON credit_entries FOR INSERT TO conversions_app, conversions_worker
    WITH CHECK (owner = NULLIF(current_setting('app.owner_id', true), '') AND kind IN ('reserve', 'commit', 'release'));
CREATE POLICY operating ON credit_entries FOR SELECT TO conversions_app
    USING (current_setting('app.operator', true) = 'on');
CREATE POLICY granting ON credit_entries FOR INSERT TO conversions_app
    WITH CHECK (current_setting('app.operator', true) = 'on' AND kind IN ('grant', 'adjust'));
CREATE POLICY checking ON credit_entries FOR SELECT TO conversions_worker USING (true);

ALTER TABLE credit_notes ENABLE ROW LEVEL SECURITY;
ALTER TABLE credit_notes FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON credit_notes FOR SELECT TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY operating ON credit_notes TO conversions_app USING (current_setting('app.operator', true) = 'on');
-- An erasure drops what people wrote.
CREATE POLICY erasing ON credit_notes FOR DELETE TO conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE credit_budgets ENABLE ROW LEVEL SECURITY;
ALTER TABLE credit_budgets FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON credit_budgets FOR SELECT TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY operating ON credit_budgets TO conversions_app USING (current_setting('app.operator', true) = 'on');
CREATE POLICY erasing ON credit_budgets FOR DELETE TO conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
