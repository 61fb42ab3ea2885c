"""These are the tables that every service has."""

from typing import Any

from shared.rpc.protos import EnumNames
from shared.webhooks import rows

WORDS: list[tuple[str, str, Any, EnumNames | None]] = [
    ("webhook_endpoints", "state", None, rows.ENDPOINT_STATES),
    ("webhook_deliveries", "state", None, rows.DELIVERY_STATES),
]
