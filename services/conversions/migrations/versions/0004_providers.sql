-- Providers of models: how they are doing, whom they serve, and every call to them.
ALTER TABLE conversions ADD COLUMN provider text NOT NULL DEFAULT '';
ALTER TABLE generations ADD COLUMN provider text NOT NULL DEFAULT '';
ALTER TABLE analyses ADD COLUMN provider text NOT NULL DEFAULT '';
ALTER TABLE analyses ADD COLUMN findings jsonb NOT NULL DEFAULT '[]';

-- How the providers of models are doing, one row each; a provider without a row was never in trouble.
-- It is the same for all owners and holds nothing of any. `switched_by` is an actor, or `atelier` for
-- this service itself. Nothing is sent to the provider before `paused_until`.
CREATE TABLE providers (
    name text NOT NULL,
    switched_off boolean NOT NULL DEFAULT false,
    switched_by text NOT NULL DEFAULT '',
    switched_at timestamptz,
    paused_until timestamptz,
    reason text NOT NULL DEFAULT '',
    failures integer NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT providers_pkey PRIMARY KEY (name),
    CONSTRAINT providers_switched CHECK (switched_off = false OR switched_at IS NOT NULL)
);

-- Which providers serve an owner for a task, instead of the deployment's table.
CREATE TABLE provider_routes (
    owner text NOT NULL,
    task text NOT NULL,
    providers text[] NOT NULL,
    set_by text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT provider_routes_pkey PRIMARY KEY (owner, task)
);

-- Every call to a provider that may charge for it. The row is there before the call is sent, so that
-- a call whose answer is lost is known. `handle` is what the result can be asked for with.
CREATE TABLE provider_calls (
    id uuid NOT NULL,
    owner text NOT NULL,
    job text NOT NULL,
    job_id uuid NOT NULL,
    attempt_id uuid NOT NULL,
    provider text NOT NULL,
    model text NOT NULL,
    task text NOT NULL,
    state text NOT NULL DEFAULT 'begun',
    handle text NOT NULL DEFAULT '',
    charge text NOT NULL DEFAULT 'possible',
    usage jsonb NOT NULL DEFAULT '{}',
    error_class text NOT NULL DEFAULT '',
    category text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    CONSTRAINT provider_calls_pkey PRIMARY KEY (id),
    CONSTRAINT provider_calls_state CHECK (state IN ('begun', 'submitted', 'answered', 'failed', 'lost')),
    CONSTRAINT provider_calls_charge CHECK (charge IN ('none', 'possible', 'charged')),
    CONSTRAINT provider_calls_ended CHECK ((state IN ('begun', 'submitted')) = (ended_at IS NULL)),
    -- Only what can be asked for again was submitted.
    CONSTRAINT provider_calls_handle CHECK (state <> 'submitted' OR handle <> '')
);
CREATE INDEX provider_calls_list ON provider_calls (owner, created_at DESC, id DESC);
CREATE INDEX provider_calls_job ON provider_calls (job_id, created_at);
-- Calls under way, for the figures of operators.
CREATE INDEX provider_calls_open ON provider_calls (provider) WHERE ended_at IS NULL;

ALTER TABLE providers ENABLE ROW LEVEL SECURITY;
ALTER TABLE providers FORCE ROW LEVEL SECURITY;
-- The contract lets operators alone switch one; workers write what they meet.
CREATE POLICY asking ON providers TO conversions_app, conversions_worker USING (true);

ALTER TABLE provider_routes ENABLE ROW LEVEL SECURITY;
ALTER TABLE provider_routes FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON provider_routes TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE provider_calls ENABLE ROW LEVEL SECURITY;
ALTER TABLE provider_calls FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON provider_calls TO conversions_app, conversions_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
