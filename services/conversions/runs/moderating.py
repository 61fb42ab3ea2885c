"""Has providers that moderate judge what a job is about to send, before any provider is sent it.

A moderation costs nothing that is charged to the job, so no record of a call is kept. It fails
closed: while it can't be asked, the job waits for it.
"""

import asyncio
import time
from collections.abc import Mapping

from services.conversions import metrics, provider_rows, rules
from services.conversions.providers.contract import (
    ModerationRequest,
    Moderator,
    Provider,
    ProviderFailed,
)
from services.conversions.providers.routes import Routes
from services.conversions.runs import standing
from shared.database.db import Database
from shared.formats.texts import storable
from shared.settings import Settings, WrongSetting


class Moderation:
    """The moderations of a deployment, in their order; each must let a job pass."""

    def __init__(
        self, db: Database, settings: Settings, routes: Routes, opened: Mapping[str, Provider]
    ) -> None:
        self._db = db
        limits = routes.limits(settings)
        self._places = {name: asyncio.Semaphore(limits[name]) for name in routes.moderation}
        self._moderators: dict[str, Moderator] = {}
        for name in routes.moderation:
            provider = opened[name]
            if not isinstance(provider, Moderator):
                raise WrongSetting(f"ATELIER_MODERATION names {name}, which can't moderate")
            self._moderators[name] = provider

    def __bool__(self) -> bool:
        return bool(self._moderators)

    async def judge(self, owner: str, request: ModerationRequest) -> None:
        """Returns if every moderation lets the owner's job pass. Raises ProviderFailed, whose
        `provider` is the moderation that doesn't, or that can't be asked."""
        for name, moderator in self._moderators.items():
            try:
                # Not a place of `Providers`: whoever waits for this one may have one there.
                async with self._places[name]:
                    await standing.check_available(self._db, name)
                    await self._ask(owner, name, moderator, request)
            except ProviderFailed as failed:
                failed.provider = name
                failed.message = _message(name, failed)
                raise

    async def _ask(
        self, owner: str, name: str, moderator: Moderator, request: ModerationRequest
    ) -> None:
        began = time.monotonic()
        outcome = "cancelled"
        try:
            await moderator.moderate(request)
            outcome = "answered"
        except ProviderFailed as failed:
            outcome = failed.error_class.lower()
            failed.message, failed.category = storable(failed.message), storable(failed.category)
            async with self._db.transaction(owner) as m:
                await standing.note(m, name, failed)
            if failed.error_class == rules.ACCOUNT:
                failed.message = f"{name} {standing.NOT_SERVED}"
            raise
        finally:
            metrics.PROVIDER_CALLS.labels(name, rules.MODERATION_TASK, outcome).inc()
            metrics.PROVIDER_SECONDS.labels(name).observe(time.monotonic() - began)
        async with self._db.transaction(owner) as m:
            await m.run(provider_rows.COUNT_SUCCESS, {"name": name})


def _message(name: str, failed: ProviderFailed) -> str:
    if failed.error_class != rules.REFUSED:
        return f"before it is sent anywhere, a moderation judges the job: {failed.message}"
    named = f" ({failed.category})" if failed.category else ""
    return (
        f"the moderation by {name} refused the job{named}: {failed.message}; it was sent to no"
        " other provider and costs nothing; change what is refused, then create another one"
    )
