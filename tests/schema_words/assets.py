from typing import Any

from services.assets.comparisons import comparison_rows
from services.assets.comparisons import rules as comparison_rules
from services.assets.core import asset_rows, history_rows, rules
from services.assets.documents import document_rows
from services.assets.documents import rules as document_rules
from services.assets.upkeep import erasure_rows, run_rows
from services.assets.upkeep import rules as run_rules
from services.assets.variants import backfill_rows
from shared.rpc.protos import EnumNames

WORDS: list[tuple[str, str, Any, EnumNames | None]] = [
    ("assets", "state", rules.ASSET_STATES, asset_rows.STATES),
    ("assets", "kind", {*rules.KIND_ROLES, *rules.SERVICE_KINDS}, asset_rows.KINDS),
    ("variants", "state", rules.VARIANT_STATES, asset_rows.VARIANT_STATES),
    ("renditions", "state", rules.JOB_STATES, None),
    ("imports", "state", rules.JOB_STATES, None),
    ("backfills", "state", rules.JOB_STATES, backfill_rows.STATES),
    ("document_slots", "kind", document_rules.KINDS, document_rows.KINDS),
    ("documents", "kind", document_rules.KINDS, document_rows.KINDS),
    ("comparisons", "state", comparison_rules.STATES, comparison_rows.STATES),
    ("documents", "state", document_rules.STATES, document_rows.STATES),
    ("usage_events", "action", None, history_rows.ACTIONS),
    ("usage_days", "action", None, history_rows.ACTIONS),
    ("storage_runs", "state", run_rules.RUN_STATES, run_rows.STATES),
    ("storage_runs", "action", None, run_rows.ACTIONS),
    ("erasure_parts", "state", None, erasure_rows.STATES),
]
