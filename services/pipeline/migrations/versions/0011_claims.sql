-- What ClaimNextPhase looks through, the oldest product first.
CREATE INDEX phases_outside ON phases (owner, created_at, id)
    WHERE external AND state IN ('pending', 'running');

-- When an outside runner of the deployment last claimed a phase of an owner: owners take turns.
CREATE TABLE outside_turns (
    owner text NOT NULL,
    claimed_at timestamptz NOT NULL,
    CONSTRAINT outside_turns_pkey PRIMARY KEY (owner)
);
ALTER TABLE outside_turns ENABLE ROW LEVEL SECURITY;
ALTER TABLE outside_turns FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON outside_turns TO pipeline_app, pipeline_worker
    USING (owner = NULLIF(current_setting('app.owner_id', true), ''));

-- A runner of the deployment claims phases of all owners. The statement that looks for the owner whose
-- turn it is, or for the owner of a claimed phase, sets app.claiming and reads owners alone; the
-- transaction then acts for one owner.
CREATE POLICY turns ON outside_turns FOR SELECT TO pipeline_app
    USING ((SELECT current_setting('app.claiming', true) = 'on'));
CREATE POLICY outside ON phases FOR SELECT TO pipeline_app
    USING ((SELECT current_setting('app.claiming', true) = 'on') AND external);
CREATE POLICY outside ON attempts FOR SELECT TO pipeline_app
    USING ((SELECT current_setting('app.claiming', true) = 'on') AND starts_with(worker, 'outside:'));
-- When what the phase was given was read, or before.
ALTER TABLE results ADD COLUMN inputs_at timestamptz NOT NULL DEFAULT now();
UPDATE results SET inputs_at = updated_at;
