from typing import Any

from services.assets import assets, backfill, rules, variants
from shared.protos import Words

WORDS: list[tuple[str, str, Any, Words | None]] = [
    ("assets", "state", rules.ASSET_STATES, assets.STATES),
    ("assets", "kind", {*rules.KIND_ROLES, *rules.SERVICE_KINDS}, assets.KINDS),
    ("variants", "state", rules.VARIANT_STATES, assets.VARIANT_STATES),
    ("renditions", "state", variants.JOB_STATES, None),
    ("imports", "state", variants.JOB_STATES, None),
    ("backfills", "state", variants.JOB_STATES, backfill.STATES),
]
