from typing import Any

from services.conversions import (
    analysis_rows,
    attempt_rows,
    batch_rows,
    consent_rows,
    credit_rows,
    generation_rows,
    job_kinds,
    job_rows,
    provider_rows,
    retention_rows,
    revoking,
    rules,
)
from shared.rpc.protos import EnumNames

WORDS: list[tuple[str, str, Any, EnumNames | None]] = [
    ("conversions", "state", rules.JOB_STATES, job_rows.STATES),
    ("generations", "state", rules.JOB_STATES, job_rows.STATES),
    ("generations", "task", rules.NEEDED, generation_rows.TASKS),
    ("analyses", "state", rules.JOB_STATES, job_rows.STATES),
    ("analyses", "task", None, analysis_rows.TASKS),
    ("counted_jobs", "job", job_kinds.KINDS, None),
    ("batches", "job", set(batch_rows.TABLES), None),
    ("batches", "state", rules.BATCH_STATES, batch_rows.STATES),
    ("batches", "pause_reason", None, batch_rows.REASONS),
    ("purged_items", "state", rules.FINISHED, None),
    ("retention_counts", "class", None, retention_rows.CLASSES),
    ("purged_jobs", "job", job_kinds.KINDS, None),
    ("purged_makers", "job", set(batch_rows.TABLES), None),
    ("dead_jobs", "job", job_kinds.KINDS, None),
    ("job_requeues", "job", job_kinds.KINDS, None),
    ("job_dismissals", "job", job_kinds.KINDS, None),
    ("attempts", "outcome", None, attempt_rows.OUTCOMES),
    ("provider_calls", "state", None, provider_rows.CALL_STATES),
    ("provider_calls", "charge", None, provider_rows.CHARGES),
    ("consents", "purpose", None, consent_rows.PURPOSES),
    ("consents", "erasure", None, consent_rows.ERASURES),
    ("erasure_items", "kind", revoking.ITEMS, None),
    ("credit_entries", "kind", None, credit_rows.ENTRY_KINDS),
    ("credit_budgets", "set_by", {credit_rows.OPERATOR, credit_rows.OWNER}, None),
]
