from typing import Any

from services.assets import assets, backfill, document_rules, documents, renders, rules, runs, usage
from shared.protos import Words

WORDS: list[tuple[str, str, Any, Words | None]] = [
    ("assets", "state", rules.ASSET_STATES, assets.STATES),
    ("assets", "kind", {*rules.KIND_ROLES, *rules.SERVICE_KINDS}, assets.KINDS),
    ("variants", "state", rules.VARIANT_STATES, assets.VARIANT_STATES),
    ("renditions", "state", rules.JOB_STATES, None),
    ("imports", "state", rules.JOB_STATES, None),
    ("backfills", "state", rules.JOB_STATES, backfill.STATES),
    ("document_slots", "kind", document_rules.KINDS, documents.KINDS),
    ("documents", "kind", document_rules.KINDS, documents.KINDS),
    ("comparisons", "state", renders.COMPARISON_STATES, renders.STATES),
    ("documents", "state", document_rules.STATES, documents.STATES),
    ("usage_events", "action", None, usage.ACTIONS),
    ("usage_days", "action", None, usage.ACTIONS),
    ("storage_runs", "state", runs.JOB_STATES, runs.STATES),
    ("storage_runs", "action", None, runs.ACTIONS),
]
