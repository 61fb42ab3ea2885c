"""Webhooks: sends a service's own events to URLs of its callers (docs/assets/webhooks.md).

TYPES = EventTypes("assets", {"asset": asset_pb2.Asset, ...})    the service's event messages,
                                                                 by subject
WebhookService(db, settings, TYPES)                              the servicer, in a server
await run(db, settings, TYPES)                                   delivers, in a worker
await prune(db, settings)                                        deletes old deliveries
"""

from shared.webhooks.dispatching import run
from shared.webhooks.event_types import EventTypes
from shared.webhooks.sending import prune
from shared.webhooks.service import WebhookService

__all__ = ["EventTypes", "WebhookService", "prune", "run"]
