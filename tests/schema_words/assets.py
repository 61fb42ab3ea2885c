from typing import Any

from services.assets import assets, rules, usage, variants
from shared.protos import Words

WORDS: list[tuple[str, str, Any, Words | None]] = [
    ("assets", "state", rules.ASSET_STATES, assets.STATES),
    ("assets", "kind", {*rules.KIND_ROLES, *rules.SERVICE_KINDS}, assets.KINDS),
    ("variants", "state", rules.VARIANT_STATES, assets.VARIANT_STATES),
    ("renditions", "state", variants.JOB_STATES, None),
    ("usage_events", "action", None, usage.ACTIONS),
    ("usage_days", "action", None, usage.ACTIONS),
]
