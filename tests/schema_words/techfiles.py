from typing import Any

from services.techfiles import (
    collection_rows,
    export_rows,
    pack_rows,
    release_rows,
    rules,
    tech_file_rows,
)
from services.techfiles.legacy import backfill_rows
from services.techfiles.verifying import check_rows, finding_rows
from shared.rpc.protos import EnumNames

WORDS: list[tuple[str, str, Any, EnumNames | None]] = [
    ("collections", "collection_type", None, collection_rows.TYPES),
    ("collections", "state_override", None, collection_rows.STATES),
    ("exports", "format", None, export_rows.FORMATS),
    ("exports", "bytes_gone_reason", None, export_rows.GONE),
    ("exports", "state", rules.EXPORT_STATES, export_rows.STATES),
    ("tech_files", "file_type", None, tech_file_rows.TYPES),
    ("tech_files", "view_type", None, tech_file_rows.VIEWS),
    ("tech_files", "state", rules.FILE_STATES, tech_file_rows.STATES),
    ("collection_changes", "kind", {"progress", "progress_derived", "credits"}, None),
    ("runs", "state", rules.RUN_STATES, pack_rows.RUN_STATES),
    ("tech_files", "origin", {"legacy"}, None),
    ("legacy_backfills", "state", rules.WALK_STATES, backfill_rows.STATES),
    ("history_checks", "state", rules.WALK_STATES, check_rows.STATES),
    ("history_findings", "state", None, finding_rows.STATES),
    ("history_findings", "fault", None, finding_rows.FAULTS),
    ("releases", "state", rules.RELEASE_STATES, release_rows.STATES),
    ("run_steps", "state", rules.STEP_STATES, pack_rows.STEP_STATES),
]
