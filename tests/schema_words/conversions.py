from typing import Any

from services.conversions import analyses, generations, job_service, jobs, rules
from shared.rpc.protos import Words

WORDS: list[tuple[str, str, Any, Words | None]] = [
    ("conversions", "state", rules.JOB_STATES, jobs.STATES),
    ("generations", "state", rules.JOB_STATES, jobs.STATES),
    ("generations", "task", rules.GENERATION_CREDITS, generations.TASKS),
    ("analyses", "state", rules.JOB_STATES, jobs.STATES),
    ("analyses", "task", None, analyses.TASKS),
    ("attempts", "outcome", None, job_service.OUTCOMES),
]
