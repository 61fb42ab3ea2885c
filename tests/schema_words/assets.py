from typing import Any

from services.assets.comparisons import renders
from services.assets.core import asset_rows, history_rows, rules
from services.assets.documents import documents
from services.assets.documents import rules as document_rules
from services.assets.upkeep import runs
from services.assets.variants import backfill_rows
from shared.rpc.protos import Words

WORDS: list[tuple[str, str, Any, Words | None]] = [
    ("assets", "state", rules.ASSET_STATES, asset_rows.STATES),
    ("assets", "kind", {*rules.KIND_ROLES, *rules.SERVICE_KINDS}, asset_rows.KINDS),
    ("variants", "state", rules.VARIANT_STATES, asset_rows.VARIANT_STATES),
    ("renditions", "state", rules.JOB_STATES, None),
    ("imports", "state", rules.JOB_STATES, None),
    ("backfills", "state", rules.JOB_STATES, backfill_rows.STATES),
    ("document_slots", "kind", document_rules.KINDS, documents.KINDS),
    ("documents", "kind", document_rules.KINDS, documents.KINDS),
    ("comparisons", "state", renders.COMPARISON_STATES, renders.STATES),
    ("documents", "state", document_rules.STATES, documents.STATES),
    ("usage_events", "action", None, history_rows.ACTIONS),
    ("usage_days", "action", None, history_rows.ACTIONS),
    ("storage_runs", "state", runs.JOB_STATES, runs.STATES),
    ("storage_runs", "action", None, runs.ACTIONS),
]
