from typing import Any

from services.assets import assets, rules, runs, variants
from shared.protos import Words

WORDS: list[tuple[str, str, Any, Words | None]] = [
    ("assets", "state", rules.ASSET_STATES, assets.STATES),
    ("assets", "kind", {*rules.KIND_ROLES, *rules.SERVICE_KINDS}, assets.KINDS),
    ("variants", "state", rules.VARIANT_STATES, assets.VARIANT_STATES),
    ("renditions", "state", variants.JOB_STATES, None),
    ("storage_runs", "state", runs.JOB_STATES, runs.STATES),
    ("storage_runs", "action", None, runs.ACTIONS),
]
