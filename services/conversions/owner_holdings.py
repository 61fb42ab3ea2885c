"""What an erasure of an owner leaves in this service, and why, and what it ends elsewhere."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import structlog

from services.conversions import credit_rows, provider_rows
from services.conversions.provider_rows import ProviderCall
from shared.database.db import Database, Mutation
from shared.erasing.eraser import Holdings

_MONEY = "what the owner's jobs cost, for the books: figures, and no texts"
_CALLS = (
    "what providers may charge for, to be held against their invoices: provider, model, task, times"
    " and usage; no prompts, no pictures, and nothing to ask for a result with"
)
_AT_ONCE = 8
_log = structlog.get_logger("erasing")


async def _forget(m: Mutation) -> None:
    await credit_rows.forget_texts(m, m.owner)
    await provider_rows.forget_calls(m)


HOLDINGS = Holdings(
    kept={"credit_accounts": _MONEY, "credit_entries": _MONEY, "provider_calls": _CALLS},
    forget=_forget,
)


def holdings(
    db: Database, give_up: Callable[[Sequence[ProviderCall]], Awaitable[None]]
) -> Holdings:
    """Returns what a worker needs, which can ask providers to give up calls."""

    async def stop(owner: str) -> None:
        async with db.transaction(owner) as m:
            calls = await m.all(provider_rows.SELECT_GIVEABLE, {"owner": owner})
        places = asyncio.Semaphore(_AT_ONCE)

        async def one(call: ProviderCall) -> None:
            async with places:
                await give_up([call])

        for ended in await asyncio.gather(*map(one, calls), return_exceptions=True):
            if ended is not None:
                _log.warning("a call goes on at its provider", error=type(ended).__name__)

    return replace(HOLDINGS, stop=stop)
