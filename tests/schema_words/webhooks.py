"""The tables that every service has."""

from typing import Any

from shared.rpc.protos import Words
from shared.webhooks import service

WORDS: list[tuple[str, str, Any, Words | None]] = [
    ("webhook_endpoints", "state", None, service.ENDPOINT_STATES),
    ("webhook_deliveries", "state", None, service.DELIVERY_STATES),
]
