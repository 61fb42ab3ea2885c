"""Webhooks: a service's own events, sent to URLs of its callers (docs/assets/webhooks.md).

TYPES = EventTypes("assets", {"asset": asset_pb2.Asset, ...})    what this service tells,
                                                                 by subject
WebhookService(db, settings, TYPES)                              the contract, in a server
await run(db, settings, TYPES)                                   delivers, in a worker
await prune(db, settings)                                        forgets old deliveries
"""

from shared.webhooks.dispatching import run
from shared.webhooks.event_types import EventTypes
from shared.webhooks.sending import prune
from shared.webhooks.service import WebhookService

__all__ = ["EventTypes", "WebhookService", "prune", "run"]
