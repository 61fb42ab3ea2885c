from typing import Any

from services.techfiles import collections, exports, files, rules, steps
from shared.rpc.protos import Words

WORDS: list[tuple[str, str, Any, Words | None]] = [
    ("collections", "collection_type", None, collections.TYPES),
    ("collections", "state_override", None, collections.STATES),
    ("exports", "format", None, exports.FORMATS),
    ("exports", "state", rules.EXPORT_STATES, exports.STATES),
    ("tech_files", "file_type", None, files.TYPES),
    ("tech_files", "view_type", None, files.VIEWS),
    ("tech_files", "state", rules.FILE_STATES, files.STATES),
    ("collection_changes", "kind", {"progress", "progress_derived", "credits"}, None),
    ("runs", "state", rules.RUN_STATES, steps.RUN_STATES),
    ("run_steps", "state", rules.STEP_STATES, steps.STEP_STATES),
]
