-- Jobs that were requeued, deleted or tried again while the revision before noted them.
SET LOCAL statement_timeout = 0;

DELETE FROM dead_jobs AS dead WHERE NOT EXISTS (
    SELECT FROM conversions AS job WHERE job.id = dead.id AND state = 'failed' AND deleted_at IS NULL
        AND NOT EXISTS (SELECT FROM conversions AS later WHERE later.owner = job.owner AND later.retry_of = job.id)
    UNION ALL SELECT FROM generations AS job WHERE job.id = dead.id AND state = 'failed' AND deleted_at IS NULL
        AND NOT EXISTS (SELECT FROM generations AS later WHERE later.owner = job.owner AND later.retry_of = job.id)
    UNION ALL SELECT FROM analyses AS job WHERE job.id = dead.id AND state = 'failed' AND deleted_at IS NULL
        AND NOT EXISTS (SELECT FROM analyses AS later WHERE later.owner = job.owner AND later.retry_of = job.id)
);

DROP POLICY filling ON conversions;
DROP POLICY filling ON generations;
DROP POLICY filling ON analyses;
DROP POLICY filling ON dead_jobs;
