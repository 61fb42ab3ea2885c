"""The server's side: notes erased owners as soon as `assets` tells of them."""

import asyncio

import psycopg
import psycopg_pool
import structlog

from shared.background.tasks import not_cancelled
from shared.database.db import Database
from shared.erasing import tombstones
from shared.rpc import auth, calls
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError

_START_SECONDS = 2.0  # for which a start waits for assets
_PAUSE_SECONDS = 1.0  # before assets is asked again
_AWAY = (DomainError, psycopg.Error, psycopg_pool.PoolTimeout)
_log = structlog.get_logger("erasing")


class Follower:
    """Follows the erasures of `assets` for one server. `start` first takes over what was erased
    while the server was down, so that no call of an erased owner comes in between."""

    def __init__(self, db: Database, peers: Peers) -> None:
        self._db = db
        self._peers = peers
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        ready = asyncio.Event()
        self._task = asyncio.create_task(self._run(ready))
        try:
            async with asyncio.timeout(_START_SECONDS):
                await ready.wait()
        except TimeoutError:
            _log.warning("erasures are followed later: assets is away", service=self._db.service)

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_START_SECONDS)

    async def _run(self, ready: asyncio.Event) -> None:
        auth.enter(calls.service_identity(self._db.service))
        heard = True
        while not_cancelled():
            try:
                await self._follow(ready)
                heard = True
            except _AWAY as error:
                if heard:  # once per outage
                    _log.warning("following waits", service=self._db.service, error=str(error))
                heard = False
                ready.set()
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _follow(self, ready: asyncio.Event) -> None:
        async with tombstones.told(self._peers) as items:
            async for item in items:
                if item.WhichOneof("item") == "erased_owner":
                    row = await tombstones.refuse(self._db, item.erased_owner)
                    await tombstones.report(self._peers, row)
                else:
                    ready.set()
