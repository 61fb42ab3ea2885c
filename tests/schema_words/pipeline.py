from typing import Any

from services.pipeline import (
    decision_rows,
    log_rows,
    phase_rows,
    product_rows,
    result_rows,
    review_rows,
    rules,
)
from shared.rpc.protos import EnumNames

WORDS: list[tuple[str, str, Any, EnumNames | None]] = [
    ("products", "state", rules.PRODUCT_STATES, product_rows.STATES),
    ("products", "preparation", {"pending", "done", "failed"}, None),
    ("products", "market_provider", None, product_rows.PROVIDERS),
    ("product_images", "view", {"front", "back", "side"}, None),
    ("phases", "state", rules.PHASE_STATES, phase_rows.STATES),
    ("results", "source", None, result_rows.SOURCES),
    ("reviews", "state", rules.REVIEW_STATES, review_rows.STATES),
    ("review_decisions", "decision", None, decision_rows.KINDS),
    ("rated_results", "verdict", {"right", "wrong"}, None),
    ("logs", "level", None, log_rows.LEVELS),
]
