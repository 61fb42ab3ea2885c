-- Jobs that died before anybody noted them. This takes no lock that anybody waits for: servers and
-- workers go on.
SET LOCAL statement_timeout = 0;

INSERT INTO dead_jobs (id, owner, job, task, error_class, error_message, provider, external, attempts, job_created_at,
    requeued_at, created_at)
SELECT id, owner, 'conversions', 'conversion', error_class, error_message,
    COALESCE(NULLIF(provider, 'local'), ''), external, attempt_number, created_at, requeued_at, COALESCE(ended_at, updated_at)
FROM conversions AS job
WHERE state = 'failed' AND deleted_at IS NULL AND error_class NOT IN ('BAD_INPUT', 'REFUSED', 'BUDGET_EXCEEDED', 'CONSENT')
    AND NOT EXISTS (SELECT FROM conversions AS later WHERE later.owner = job.owner AND later.retry_of = job.id)
UNION ALL SELECT id, owner, 'generations', 'generation.' || task, error_class, error_message,
    COALESCE(NULLIF(provider, 'local'), ''), external, attempt_number, created_at, requeued_at, COALESCE(ended_at, updated_at)
FROM generations AS job
WHERE state = 'failed' AND deleted_at IS NULL AND error_class NOT IN ('BAD_INPUT', 'REFUSED', 'BUDGET_EXCEEDED', 'CONSENT')
    AND NOT EXISTS (SELECT FROM generations AS later WHERE later.owner = job.owner AND later.retry_of = job.id)
UNION ALL SELECT id, owner, 'analyses', 'analysis.' || task, error_class, error_message,
    COALESCE(NULLIF(provider, 'local'), ''), external, attempt_number, created_at, requeued_at, COALESCE(ended_at, updated_at)
FROM analyses AS job
WHERE state = 'failed' AND deleted_at IS NULL AND error_class NOT IN ('BAD_INPUT', 'REFUSED', 'BUDGET_EXCEEDED', 'CONSENT')
    AND NOT EXISTS (SELECT FROM analyses AS later WHERE later.owner = job.owner AND later.retry_of = job.id)
ON CONFLICT DO NOTHING;
