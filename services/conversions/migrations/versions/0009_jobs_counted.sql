-- Jobs that changed while the revision before counted them.
SET LOCAL statement_timeout = 0;

UPDATE counted_jobs AS counted SET state = job.state, credits = job.credits, processing_time_ms = job.processing_time_ms
FROM (
    SELECT id, state, credits, processing_time_ms FROM conversions
    UNION ALL SELECT id, state, credits, processing_time_ms FROM generations
    UNION ALL SELECT id, state, credits, processing_time_ms FROM analyses
) AS job
WHERE counted.id = job.id AND (counted.state, counted.credits, counted.processing_time_ms)
    IS DISTINCT FROM (job.state, job.credits, job.processing_time_ms);

DROP POLICY filling ON conversions;
DROP POLICY filling ON generations;
DROP POLICY filling ON analyses;
DROP POLICY filling ON counted_jobs;
DROP POLICY filling ON job_inputs;
