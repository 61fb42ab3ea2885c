-- Plays steps one after the other, each as the transaction that a call or a worker makes of it, and
-- returns what became of each.
CREATE FUNCTION pg_temp.play(steps jsonb) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    s jsonb;
    found_out text;
    said text[] := '{}';
    is_free boolean;
    moved integer;
    whose text;
    price bigint;
    job uuid;
BEGIN
    FOR s IN SELECT jsonb_array_elements(steps) LOOP
        whose := s ->> 'owner';
        price := s ->> 'price';
        job := s ->> 'job';
        found_out := '';
        PERFORM set_config('app.owner_id', whose, true);
        PERFORM set_config('app.operator', CASE WHEN s ->> 'do' IN ('grant', 'adjust', 'budget') THEN 'on' ELSE '' END, true);
        BEGIN
            CASE s ->> 'do'
            WHEN 'grant', 'adjust' THEN
                INSERT INTO conversions.credit_entries (owner, kind, credits)
                VALUES (whose, s ->> 'do', (s ->> 'credits')::bigint);
            WHEN 'budget' THEN
                INSERT INTO conversions.credit_budgets (owner, set_by, daily_credits, updated_by)
                VALUES (whose, 'operator', (s ->> 'credits')::bigint, 'olga')
                ON CONFLICT (owner, set_by) DO UPDATE SET daily_credits = excluded.daily_credits;
            WHEN 'cost' THEN
                SELECT CASE WHEN c.allowed THEN 'allowed' ELSE 'over' END INTO found_out
                FROM conversions.count_provider_cost(whose, (s ->> 'micros')::bigint, NULL, 100, NULL) c;
            WHEN 'create' THEN
                is_free := (s ->> 'free')::boolean;
                BEGIN
                    PERFORM conversions.reserve_credits(whose, s ->> 'table', job, 'product', price, is_free,
                        (s ->> 'enforced')::boolean, NULL, NULL, 2);
                EXCEPTION WHEN SQLSTATE 'ATL01' THEN
                    IF SQLERRM <> 'paid' THEN
                        RAISE;
                    END IF;
                    is_free := false;
                    PERFORM conversions.reserve_credits(whose, s ->> 'table', job, 'product', price, is_free,
                        (s ->> 'enforced')::boolean, NULL, NULL, 2);
                END;
                IF s ->> 'table' = 'analyses' THEN
                    INSERT INTO conversions.analyses (id, owner, created_by, task, images, facts, product_id,
                        priority, external, credits_reserved)
                    VALUES (job, whose, 'ada', 'product', '[]', '{}', '', 5, false, price);
                ELSE
                    INSERT INTO conversions.conversions (id, owner, created_by, user_asset_id, cloth_asset_id,
                        style_name, metadata, product_id, free, priority, external, credits_reserved)
                    VALUES (job, whose, 'ada', gen_random_uuid(), gen_random_uuid(), '', '{}', '', is_free, 5, false,
                        CASE WHEN is_free THEN 0 ELSE price END);
                END IF;
                found_out := CASE WHEN is_free THEN 'free' ELSE '' END;
            WHEN 'move' THEN
                -- Fenced by state, and by token for an attempt, as shared/database/states.py does it.
                EXECUTE format('UPDATE conversions.%I SET state = $1, version = version + 1,'
                    ' attempt_token = coalesce($2, attempt_token), attempt_number = attempt_number + $3,'
                    ' credits = $4, error_class = $5, recipe = $6 %s'
                    ' WHERE id = $7 AND state = ANY ($8) AND ($9 IS NULL OR attempt_token = $9)', s ->> 'table',
                    CASE WHEN s ->> 'to' <> 'completed' THEN ''
                        WHEN s ->> 'table' = 'analyses' THEN ', result = ''{}'''
                        ELSE ', result_asset_id = gen_random_uuid()' END)
                USING s ->> 'to', (s ->> 'claims')::uuid, CASE WHEN s ? 'claims' THEN 1 ELSE 0 END,
                    coalesce((s ->> 'credits')::bigint, 0), CASE s ->> 'to' WHEN 'failed' THEN 'X' ELSE '' END,
                    CASE s ->> 'to' WHEN 'completed' THEN '{}'::jsonb END, job,
                    ARRAY(SELECT jsonb_array_elements_text(s -> 'from')), (s ->> 'token')::uuid;
                GET DIAGNOSTICS moved = ROW_COUNT;
                found_out := CASE WHEN moved = 1 THEN 'moved' ELSE 'nothing' END;
            END CASE;
            IF (s ->> 'dies')::boolean THEN
                RAISE EXCEPTION 'the process dies before its commit' USING ERRCODE = 'ATLR1';
            END IF;
        EXCEPTION
            WHEN SQLSTATE 'ATLR1' THEN found_out := 'died';
            WHEN SQLSTATE 'ATL01' THEN found_out := SQLERRM;
            WHEN unique_violation THEN found_out := 'repeated';
            WHEN check_violation THEN found_out := 'refused';
        END;
        said := said || found_out;
    END LOOP;
    RETURN said;
END $$;
