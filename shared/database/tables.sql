-- The tables that every service's schema has. {service} is replaced by the service's name.
--
-- Row-level security is enabled and forced on every table. There are two kinds of policy: `tenant` shows the rows of the
-- owner that the transaction set in app.owner_id (after a transaction the setting reads '', hence NULLIF); the others
-- show the worker role all rows of the few tables that background work must see across owners.

-- Stored answers to mutations, by request_id.
CREATE TABLE requests (
    owner text NOT NULL,
    actor text NOT NULL,
    method text NOT NULL,
    request_id text NOT NULL,
    body_hash bytea NOT NULL,
    answer bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT requests_pkey PRIMARY KEY (owner, actor, method, request_id)
);
CREATE INDEX requests_created_at ON requests (created_at);

-- The outbox. An event is written in the transaction of its change, without a position; the sequencer gives committed
-- events dense positions. `seq` follows causality (a change waits for the row lock of the one before it), not commit
-- order, so only the sequencer uses it.
CREATE TABLE events (
    seq bigint GENERATED ALWAYS AS IDENTITY,
    position bigint,
    owner text NOT NULL,
    subject text NOT NULL,
    subject_id uuid NOT NULL,
    version bigint NOT NULL,
    type text NOT NULL,
    payload bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT events_pkey PRIMARY KEY (seq)
);
CREATE UNIQUE INDEX events_position ON events (position) WHERE position IS NOT NULL;
CREATE INDEX events_unstamped ON events (seq) WHERE position IS NULL;
CREATE INDEX events_owner_position ON events (owner, position) WHERE position IS NOT NULL;

-- The state of the event stream, in one row. `epoch` changes when a backup is restored, so that old cursors are refused
-- and not misread. `pruned_to` is the last position whose event may be deleted already.
CREATE TABLE event_stream (
    only_row boolean NOT NULL DEFAULT true,
    epoch uuid NOT NULL DEFAULT gen_random_uuid(),
    position bigint NOT NULL DEFAULT 0,
    pruned_to bigint NOT NULL DEFAULT 0,
    CONSTRAINT event_stream_pkey PRIMARY KEY (only_row),
    CONSTRAINT event_stream_one_row CHECK (only_row)
);
-- The row is inserted before policies are forced: after that the owner's INSERT would be refused.
INSERT INTO event_stream DEFAULT VALUES;

-- One row per attempt of a job: its sizes, its cost and how it ended.
CREATE TABLE attempts (
    id uuid NOT NULL,
    owner text NOT NULL,
    job text NOT NULL,
    job_id uuid NOT NULL,
    number integer NOT NULL,
    worker text NOT NULL,
    outcome text NOT NULL DEFAULT 'running',
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    model text NOT NULL DEFAULT '',
    input_bytes bigint NOT NULL DEFAULT 0,
    output_bytes bigint NOT NULL DEFAULT 0,
    credits bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    CONSTRAINT attempts_pkey PRIMARY KEY (id),
    CONSTRAINT attempts_outcome
        CHECK (outcome IN ('running', 'succeeded', 'failed', 'retried', 'waited', 'cancelled', 'lost')),
    CONSTRAINT attempts_ended CHECK ((outcome = 'running') = (ended_at IS NULL))
);
CREATE INDEX attempts_job ON attempts (job_id, created_at);
CREATE INDEX attempts_owner ON attempts (owner, created_at DESC, id DESC);

ALTER TABLE requests ENABLE ROW LEVEL SECURITY;
ALTER TABLE requests FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON requests TO {service}_app, {service}_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY pruning ON requests TO {service}_worker USING (true);

ALTER TABLE events ENABLE ROW LEVEL SECURITY;
ALTER TABLE events FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON events TO {service}_app, {service}_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY sequencing ON events TO {service}_worker USING (true);

ALTER TABLE event_stream ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_stream FORCE ROW LEVEL SECURITY;
CREATE POLICY reading ON event_stream FOR SELECT TO {service}_app USING (true);
CREATE POLICY sequencing ON event_stream TO {service}_worker USING (true);

ALTER TABLE attempts ENABLE ROW LEVEL SECURITY;
ALTER TABLE attempts FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON attempts TO {service}_app, {service}_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY reaping ON attempts TO {service}_worker USING (true);

-- Alembic's own table, visible to migrations alone.
ALTER TABLE alembic_version ENABLE ROW LEVEL SECURITY;
ALTER TABLE alembic_version FORCE ROW LEVEL SECURITY;
CREATE POLICY migrating ON alembic_version TO {service}_owner USING (true);

-- Webhook endpoints: where an owner's events are sent. `failing_since` is the time of the first failure since the last
-- success. `replay_from` to `replay_to` are the event positions that the dispatcher reads again for this endpoint.
-- Nothing is sent before `paused_until`, which the receiver asked for (Retry-After).
CREATE TABLE webhook_endpoints (
    id uuid NOT NULL,
    owner text NOT NULL,
    created_by text NOT NULL,
    url text NOT NULL,
    description text NOT NULL,
    event_types text[] NOT NULL,
    state text NOT NULL DEFAULT 'enabled',
    disable_reason text NOT NULL DEFAULT '',
    disabled_at timestamptz,
    failing_since timestamptz,
    last_error_class text NOT NULL DEFAULT '',
    replay_from bigint,
    replay_to bigint,
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    paused_until timestamptz,
    CONSTRAINT webhook_endpoints_pkey PRIMARY KEY (id),
    CONSTRAINT webhook_endpoints_owner_id UNIQUE (owner, id),
    CONSTRAINT webhook_endpoints_state CHECK (state IN ('enabled', 'disabled')),
    CONSTRAINT webhook_endpoints_disabled CHECK ((state = 'disabled') = (disabled_at IS NOT NULL))
);
CREATE INDEX webhook_endpoints_owner ON webhook_endpoints (owner, created_at DESC, id DESC);
CREATE INDEX webhook_endpoints_replay ON webhook_endpoints (id) WHERE replay_from IS NOT NULL;

-- Secrets that sign deliveries. Signing needs the plain secret, so it is stored unencrypted behind row-level security,
-- and a backup of the database holds it too. `version` is the version of the endpoint that the secret came with.
CREATE TABLE webhook_secrets (
    owner text NOT NULL,
    endpoint_id uuid NOT NULL,
    version bigint NOT NULL,
    secret text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    CONSTRAINT webhook_secrets_pkey PRIMARY KEY (owner, endpoint_id, version),
    CONSTRAINT webhook_secrets_endpoint FOREIGN KEY (owner, endpoint_id)
        REFERENCES webhook_endpoints (owner, id) ON DELETE CASCADE
);

-- One event for one endpoint: both queue and log. While an attempt runs, `next_attempt_at` is the time at which it counts
-- as lost.
CREATE TABLE webhook_deliveries (
    id uuid NOT NULL,
    owner text NOT NULL,
    endpoint_id uuid NOT NULL,
    position bigint, -- the event's position; NULL for a test event
    event_type text NOT NULL,
    body text NOT NULL,
    state text NOT NULL DEFAULT 'pending',
    attempts integer NOT NULL DEFAULT 0,
    attempts_in_turn integer NOT NULL DEFAULT 0, -- since creation or the last replay: decides the next pause
    turn_began_at timestamptz NOT NULL DEFAULT now(),
    last_attempt_at timestamptz,
    next_attempt_at timestamptz DEFAULT now(),
    status_code integer NOT NULL DEFAULT 0,
    error_class text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    response_excerpt text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (id),
    CONSTRAINT webhook_deliveries_endpoint FOREIGN KEY (owner, endpoint_id)
        REFERENCES webhook_endpoints (owner, id) ON DELETE CASCADE,
    CONSTRAINT webhook_deliveries_state CHECK (state IN ('pending', 'delivered', 'failed')),
    CONSTRAINT webhook_deliveries_ended CHECK ((state = 'pending') = (ended_at IS NULL)),
    CONSTRAINT webhook_deliveries_due CHECK ((state = 'pending') = (next_attempt_at IS NOT NULL))
);
-- An event has one delivery per endpoint, even if it is replayed.
CREATE UNIQUE INDEX webhook_deliveries_event ON webhook_deliveries (endpoint_id, position) WHERE position IS NOT NULL;
CREATE INDEX webhook_deliveries_next ON webhook_deliveries (endpoint_id, next_attempt_at) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_log ON webhook_deliveries (owner, endpoint_id, created_at DESC, id DESC);
CREATE INDEX webhook_deliveries_ended_at ON webhook_deliveries (ended_at) WHERE ended_at IS NOT NULL;

-- The position up to which events have deliveries, in one row.
CREATE TABLE webhook_cursor (
    only_row boolean NOT NULL DEFAULT true,
    position bigint NOT NULL DEFAULT 0,
    CONSTRAINT webhook_cursor_pkey PRIMARY KEY (only_row),
    CONSTRAINT webhook_cursor_one_row CHECK (only_row)
);
INSERT INTO webhook_cursor DEFAULT VALUES;

ALTER TABLE webhook_endpoints ENABLE ROW LEVEL SECURITY;
ALTER TABLE webhook_endpoints FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON webhook_endpoints TO {service}_app, {service}_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY delivering ON webhook_endpoints TO {service}_worker USING (true);

ALTER TABLE webhook_secrets ENABLE ROW LEVEL SECURITY;
ALTER TABLE webhook_secrets FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON webhook_secrets TO {service}_app, {service}_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

ALTER TABLE webhook_deliveries ENABLE ROW LEVEL SECURITY;
ALTER TABLE webhook_deliveries FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON webhook_deliveries TO {service}_app, {service}_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));
CREATE POLICY delivering ON webhook_deliveries TO {service}_worker USING (true);

ALTER TABLE webhook_cursor ENABLE ROW LEVEL SECURITY;
ALTER TABLE webhook_cursor FORCE ROW LEVEL SECURITY;
CREATE POLICY dispatching ON webhook_cursor TO {service}_worker USING (true);

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
