from typing import Any

from services.conversions import analysis_rows, attempt_rows, generation_rows, job_rows, rules
from shared.rpc.protos import EnumNames

WORDS: list[tuple[str, str, Any, EnumNames | None]] = [
    ("conversions", "state", rules.JOB_STATES, job_rows.STATES),
    ("generations", "state", rules.JOB_STATES, job_rows.STATES),
    ("generations", "task", rules.GENERATION_CREDITS, generation_rows.TASKS),
    ("analyses", "state", rules.JOB_STATES, job_rows.STATES),
    ("analyses", "task", None, analysis_rows.TASKS),
    ("attempts", "outcome", None, attempt_rows.OUTCOMES),
]
