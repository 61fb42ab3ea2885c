from typing import Any

from services.pipeline import log_rows, records, rules
from shared.rpc.protos import Words

WORDS: list[tuple[str, str, Any, Words | None]] = [
    ("products", "state", rules.PRODUCT_STATES, records.PRODUCT_STATES),
    ("products", "preparation", {"pending", "done", "failed"}, None),
    ("products", "market_provider", None, records.PROVIDERS),
    ("product_images", "view", {"front", "back", "side"}, None),
    ("phases", "state", rules.PHASE_STATES, records.PHASE_STATES),
    ("results", "source", None, records.SOURCES),
    ("reviews", "state", rules.REVIEW_STATES, records.REVIEW_STATES),
    ("logs", "level", None, log_rows.LEVELS),
]
