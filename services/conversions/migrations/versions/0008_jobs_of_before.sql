-- What triggers write of new jobs, for the jobs of before. This takes no lock that anybody waits for:
-- servers and workers go on.
SET LOCAL statement_timeout = 0;

INSERT INTO counted_jobs (id, owner, created_by, job, type, state, credits, processing_time_ms, features, created_at)
SELECT id, owner, created_by, 'conversions', CASE WHEN free THEN 'free' ELSE 'paid' END, state, credits, processing_time_ms,
    features_used(ARRAY['style', 'outside_worker', 'product'], ARRAY[style_name <> '', external, product_id <> '']), created_at
FROM conversions
ON CONFLICT DO NOTHING;
INSERT INTO counted_jobs (id, owner, created_by, job, type, state, credits, processing_time_ms, features, created_at, prompt,
    style, aspect_ratio, quality, format, resolution)
SELECT id, owner, created_by, 'generations', task, state, credits, processing_time_ms,
    features_used(ARRAY['references', 'style', 'seed', 'regenerated', 'outside_worker', 'product'],
        ARRAY[cardinality(reference_asset_ids) > 0, style <> '', seed IS NOT NULL, regenerated_from IS NOT NULL, external,
            product_id <> '']),
    created_at, left(lower(btrim(regexp_replace(prompt, '\s+', ' ', 'g'))), 200), style, aspect_ratio, quality, format, resolution
FROM generations
ON CONFLICT DO NOTHING;
INSERT INTO counted_jobs (id, owner, created_by, job, type, state, credits, processing_time_ms, features, created_at)
SELECT id, owner, created_by, 'analyses', task, state, credits, processing_time_ms,
    features_used(ARRAY['facts', 'outside_worker', 'product'], ARRAY[facts <> '{}', external, product_id <> '']), created_at
FROM analyses
ON CONFLICT DO NOTHING;

INSERT INTO job_inputs (owner, job_id, position, job, asset_id, role)
SELECT owner, id, 1, 'conversions', user_asset_id, 'user' FROM conversions
UNION ALL SELECT owner, id, 2, 'conversions', cloth_asset_id, 'cloth' FROM conversions
UNION ALL SELECT owner, id, n, 'generations', asset_id, 'reference'
    FROM generations, unnest(reference_asset_ids) WITH ORDINALITY AS each (asset_id, n)
UNION ALL SELECT owner, id, cardinality(reference_asset_ids) + 1, 'generations', logo_asset_id, 'logo'
    FROM generations WHERE logo_asset_id IS NOT NULL
UNION ALL SELECT owner, id, cardinality(reference_asset_ids) + 2, 'generations', source_asset_id, 'source'
    FROM generations WHERE source_asset_id IS NOT NULL
UNION ALL SELECT owner, id, n, 'analyses', (image ->> 'asset_id')::uuid,
        COALESCE(NULLIF(image ->> 'view', ''), 'picture ' || n)
    FROM analyses, jsonb_array_elements(images) WITH ORDINALITY AS each (image, n)
ON CONFLICT DO NOTHING;
