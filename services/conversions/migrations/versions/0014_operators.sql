-- Operators see what failed for good, and requeue it.

ALTER TABLE conversions ADD COLUMN requeued_at timestamptz;
ALTER TABLE conversions ADD COLUMN requeued_after integer NOT NULL DEFAULT 0;
ALTER TABLE generations ADD COLUMN requeued_at timestamptz;
ALTER TABLE generations ADD COLUMN requeued_after integer NOT NULL DEFAULT 0;
ALTER TABLE analyses ADD COLUMN requeued_at timestamptz;
ALTER TABLE analyses ADD COLUMN requeued_after integer NOT NULL DEFAULT 0;

ALTER TABLE credit_entries ADD COLUMN requeued_after integer NOT NULL DEFAULT 0;
DROP INDEX credit_entries_once;
CREATE UNIQUE INDEX credit_entries_once ON credit_entries (job_id, kind, attempt, requeued_after) WHERE job_id IS NOT NULL;

DROP FUNCTION reserve_credits(text, text, uuid, text, bigint, boolean, boolean, bigint, bigint, integer);
CREATE FUNCTION reserve_credits(
    of_owner text, of_job text, of_id uuid, of_task text, price bigint, is_free boolean, enforced boolean,
    setting_credits bigint, setting_cost_micros bigint, setting_free integer, after_attempts integer DEFAULT 0
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
        INSERT INTO conversions.credit_entries (owner, kind, credits, job, job_id, task, attempt, requeued_after)
        VALUES (of_owner, 'reserve', paid, of_job, of_id, of_task, after_attempts, after_attempts);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION settle_credits() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    named text := TG_ARGV[0];
    rest bigint;
    reserved_at timestamptz := coalesce(OLD.requeued_at, OLD.created_at);
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
        WHERE owner = NEW.owner AND month = date_trunc('month', reserved_at AT TIME ZONE 'UTC')::date;
    END IF;
    IF NEW.credits > 0 THEN
        INSERT INTO conversions.credit_entries (owner, kind, credits, job, job_id, task, attempt, attempt_id, requeued_after)
        VALUES (NEW.owner, 'commit', NEW.credits, TG_TABLE_NAME, NEW.id, named, NEW.attempt_number,
            coalesce(NEW.attempt_token, OLD.attempt_token), NEW.requeued_after);
    END IF;
    IF rest > 0 THEN
        UPDATE conversions.credit_accounts SET day_credits = day_credits - rest
        WHERE owner = NEW.owner AND day = (reserved_at AT TIME ZONE 'UTC')::date;
        INSERT INTO conversions.credit_entries (owner, kind, credits, job, job_id, task, attempt, attempt_id, requeued_after)
        VALUES (NEW.owner, 'release', rest, TG_TABLE_NAME, NEW.id, named, NEW.attempt_number,
            coalesce(NEW.attempt_token, OLD.attempt_token), NEW.requeued_after);
    END IF;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END $$;

-- Jobs that failed for good through no fault of their owners, one row each, for operators. Triggers
-- write it: a job that is requeued, deleted, or tried again by its owner is no longer here. One that is
-- undeleted comes back. What an operator dismisses is deleted here.
CREATE TABLE dead_jobs (
    id uuid NOT NULL,
    owner text NOT NULL,
    job text NOT NULL,
    task text NOT NULL,
    error_class text NOT NULL,
    error_message text NOT NULL,
    -- The provider that was asked last, or that the job waited for; empty: none that is recorded.
    provider text NOT NULL,
    external boolean NOT NULL,
    attempts integer NOT NULL,
    job_created_at timestamptz NOT NULL,
    requeued_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT dead_jobs_pkey PRIMARY KEY (id),
    CONSTRAINT dead_jobs_job CHECK (job IN ('conversions', 'generations', 'analyses'))
);
CREATE INDEX dead_jobs_list ON dead_jobs (created_at DESC, id DESC);
CREATE INDEX dead_jobs_list_owner ON dead_jobs (owner, created_at DESC, id DESC);

-- Every requeue of a dead job: who did it and why, and what the job had failed of.
CREATE TABLE job_requeues (
    id uuid NOT NULL,
    owner text NOT NULL,
    job text NOT NULL,
    job_id uuid NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    error_class text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT job_requeues_pkey PRIMARY KEY (owner, id),
    CONSTRAINT job_requeues_job CHECK (job IN ('conversions', 'generations', 'analyses'))
);
CREATE INDEX job_requeues_list ON job_requeues (owner, job_id, created_at DESC);

-- Dead jobs that an operator took off the list: who did it and why, and what the job had failed of.
CREATE TABLE job_dismissals (
    job_id uuid NOT NULL,
    owner text NOT NULL,
    job text NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    error_class text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT job_dismissals_pkey PRIMARY KEY (owner, job_id),
    CONSTRAINT job_dismissals_job CHECK (job IN ('conversions', 'generations', 'analyses'))
);

CREATE FUNCTION note_dead_job() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    named text := TG_ARGV[0];
    was_settled boolean;
BEGIN
    IF OLD.state = 'failed' THEN  -- it was undeleted
        EXECUTE format('SELECT EXISTS (SELECT FROM conversions.%I WHERE owner = $1 AND retry_of = $2)', TG_TABLE_NAME)
            INTO was_settled USING NEW.owner, NEW.id;
        IF was_settled OR EXISTS (SELECT FROM conversions.job_dismissals WHERE owner = NEW.owner AND job_id = NEW.id) THEN
            RETURN NULL;
        END IF;
    END IF;
    IF named <> 'conversion' THEN
        named := named || '.' || NEW.task;
    END IF;
    INSERT INTO conversions.dead_jobs (id, owner, job, task, error_class, error_message, provider, external, attempts,
        job_created_at, requeued_at, created_at)
    VALUES (NEW.id, NEW.owner, TG_TABLE_NAME, named, NEW.error_class, NEW.error_message,
        -- A provider that is left alone has a row among the providers, and no call.
        coalesce((SELECT name FROM conversions.providers WHERE name = OLD.waits_for),
            (SELECT provider FROM conversions.provider_calls WHERE job_id = NEW.id ORDER BY created_at DESC, id DESC LIMIT 1),
            NULLIF(NEW.provider, 'local'), ''),
        NEW.external, NEW.attempt_number, NEW.created_at, NEW.requeued_at, coalesce(NEW.ended_at, now()))
    ON CONFLICT (id) DO NOTHING;
    RETURN NULL;
END $$;
CREATE FUNCTION forget_dead_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        DELETE FROM conversions.dead_jobs WHERE owner = NEW.owner AND id = NEW.retry_of;
    ELSE
        DELETE FROM conversions.dead_jobs WHERE owner = OLD.owner AND id = OLD.id;
    END IF;
    IF TG_OP = 'DELETE' THEN
        DELETE FROM conversions.job_requeues WHERE owner = OLD.owner AND job_id = OLD.id;
        DELETE FROM conversions.job_dismissals WHERE owner = OLD.owner AND job_id = OLD.id;
    END IF;
    RETURN NULL;
END $$;
-- The words are those of rules.FINAL_ERRORS: what they name is for the owner to mend.
CREATE TRIGGER note_dead_job AFTER UPDATE OF state ON conversions FOR EACH ROW
    WHEN (OLD.state <> 'failed' AND NEW.state = 'failed' AND NEW.error_class NOT IN ('BAD_INPUT', 'REFUSED', 'BUDGET_EXCEEDED', 'CONSENT'))
    EXECUTE FUNCTION note_dead_job('conversion');
CREATE TRIGGER note_undeleted_job AFTER UPDATE OF deleted_at ON conversions FOR EACH ROW
    WHEN (OLD.deleted_at IS NOT NULL AND NEW.deleted_at IS NULL AND NEW.state = 'failed'
        AND NEW.error_class NOT IN ('BAD_INPUT', 'REFUSED', 'BUDGET_EXCEEDED', 'CONSENT'))
    EXECUTE FUNCTION note_dead_job('conversion');
CREATE TRIGGER leave_dead_jobs AFTER UPDATE OF state, deleted_at ON conversions FOR EACH ROW
    WHEN (OLD.state = 'failed' AND (NEW.state <> 'failed' OR NEW.deleted_at IS NOT NULL)) EXECUTE FUNCTION forget_dead_job();
CREATE TRIGGER retry_dead_job AFTER INSERT ON conversions FOR EACH ROW
    WHEN (NEW.retry_of IS NOT NULL) EXECUTE FUNCTION forget_dead_job();
CREATE TRIGGER forget_dead_job AFTER DELETE ON conversions FOR EACH ROW EXECUTE FUNCTION forget_dead_job();
CREATE TRIGGER note_dead_job AFTER UPDATE OF state ON generations FOR EACH ROW
    WHEN (OLD.state <> 'failed' AND NEW.state = 'failed' AND NEW.error_class NOT IN ('BAD_INPUT', 'REFUSED', 'BUDGET_EXCEEDED', 'CONSENT'))
    EXECUTE FUNCTION note_dead_job('generation');
CREATE TRIGGER note_undeleted_job AFTER UPDATE OF deleted_at ON generations FOR EACH ROW
    WHEN (OLD.deleted_at IS NOT NULL AND NEW.deleted_at IS NULL AND NEW.state = 'failed'
        AND NEW.error_class NOT IN ('BAD_INPUT', 'REFUSED', 'BUDGET_EXCEEDED', 'CONSENT'))
    EXECUTE FUNCTION note_dead_job('generation');
CREATE TRIGGER leave_dead_jobs AFTER UPDATE OF state, deleted_at ON generations FOR EACH ROW
    WHEN (OLD.state = 'failed' AND (NEW.state <> 'failed' OR NEW.deleted_at IS NOT NULL)) EXECUTE FUNCTION forget_dead_job();
CREATE TRIGGER retry_dead_job AFTER INSERT ON generations FOR EACH ROW
    WHEN (NEW.retry_of IS NOT NULL) EXECUTE FUNCTION forget_dead_job();
CREATE TRIGGER forget_dead_job AFTER DELETE ON generations FOR EACH ROW EXECUTE FUNCTION forget_dead_job();
CREATE TRIGGER note_dead_job AFTER UPDATE OF state ON analyses FOR EACH ROW
    WHEN (OLD.state <> 'failed' AND NEW.state = 'failed' AND NEW.error_class NOT IN ('BAD_INPUT', 'REFUSED', 'BUDGET_EXCEEDED', 'CONSENT'))
    EXECUTE FUNCTION note_dead_job('analysis');
CREATE TRIGGER note_undeleted_job AFTER UPDATE OF deleted_at ON analyses FOR EACH ROW
    WHEN (OLD.deleted_at IS NOT NULL AND NEW.deleted_at IS NULL AND NEW.state = 'failed'
        AND NEW.error_class NOT IN ('BAD_INPUT', 'REFUSED', 'BUDGET_EXCEEDED', 'CONSENT'))
    EXECUTE FUNCTION note_dead_job('analysis');
CREATE TRIGGER leave_dead_jobs AFTER UPDATE OF state, deleted_at ON analyses FOR EACH ROW
    WHEN (OLD.state = 'failed' AND (NEW.state <> 'failed' OR NEW.deleted_at IS NOT NULL)) EXECUTE FUNCTION forget_dead_job();
CREATE TRIGGER retry_dead_job AFTER INSERT ON analyses FOR EACH ROW
    WHEN (NEW.retry_of IS NOT NULL) EXECUTE FUNCTION forget_dead_job();
CREATE TRIGGER forget_dead_job AFTER DELETE ON analyses FOR EACH ROW EXECUTE FUNCTION forget_dead_job();

ALTER TABLE dead_jobs ENABLE ROW LEVEL SECURITY;
ALTER TABLE dead_jobs FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON dead_jobs TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
-- An operator reads dead jobs across owners in transactions that set app.operator.
CREATE POLICY operating ON dead_jobs FOR SELECT TO conversions_app
    USING ((SELECT current_setting('app.operator', true) = 'on'));
-- A worker counts them.
CREATE POLICY counting ON dead_jobs FOR SELECT TO conversions_worker USING (true);

ALTER TABLE job_requeues ENABLE ROW LEVEL SECURITY;
ALTER TABLE job_requeues FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON job_requeues TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE job_dismissals ENABLE ROW LEVEL SECURITY;
ALTER TABLE job_dismissals FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON job_dismissals TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

-- When an outside worker of the deployment last claimed a job of an owner: owners take turns.
CREATE TABLE outside_turns (
    owner text NOT NULL,
    claimed_at timestamptz NOT NULL,
    CONSTRAINT outside_turns_pkey PRIMARY KEY (owner)
);
ALTER TABLE outside_turns ENABLE ROW LEVEL SECURITY;
ALTER TABLE outside_turns FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON outside_turns TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

-- A worker of the deployment claims jobs of all owners. The statement that looks for the next one, or
-- for the owner of a claimed one, sets app.claiming and reads owners alone; the transaction then acts
-- for one owner.
CREATE POLICY turns ON outside_turns FOR SELECT TO conversions_app
    USING ((SELECT current_setting('app.claiming', true) = 'on'));
CREATE POLICY outside ON conversions FOR SELECT TO conversions_app
    USING ((SELECT current_setting('app.claiming', true) = 'on') AND external);
CREATE POLICY outside ON generations FOR SELECT TO conversions_app
    USING ((SELECT current_setting('app.claiming', true) = 'on') AND external);
CREATE POLICY outside ON analyses FOR SELECT TO conversions_app
    USING ((SELECT current_setting('app.claiming', true) = 'on') AND external);
CREATE POLICY outside ON attempts FOR SELECT TO conversions_app
    USING ((SELECT current_setting('app.claiming', true) = 'on') AND starts_with(worker, 'outside:'));

-- A callback names a call by its handle alone. The statement that looks for the call sets
-- app.calling_back, and reads which one it is.
CREATE POLICY calling_back ON provider_calls FOR SELECT TO conversions_app
    USING ((SELECT current_setting('app.calling_back', true) = 'on') AND ended_at IS NULL);

-- The next revisions read and fill these as the owner of the tables, whom the policies bind too.
CREATE POLICY filling ON conversions FOR SELECT TO conversions_owner USING (true);
CREATE POLICY filling ON generations FOR SELECT TO conversions_owner USING (true);
CREATE POLICY filling ON analyses FOR SELECT TO conversions_owner USING (true);
CREATE POLICY filling ON dead_jobs TO conversions_owner USING (true);
