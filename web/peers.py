"""Channels to the four services, for calls of others: whoever calls `web` sends the token."""

import itertools

import grpc

from shared.rpc import calls
from shared.settings import SERVICES, Settings

# A connection carries a hundred calls at a time, and a stream may last for ever.
_STREAM_CHANNELS = 8


class Channels:
    """Connects at first use. Create it inside the event loop."""

    def __init__(self, settings: Settings) -> None:
        addresses = {name: getattr(settings, f"{name}_address") for name in SERVICES}
        self._unary = {
            name: calls.channel(settings, address) for name, address in addresses.items()
        }
        self._streams = {
            name: [calls.channel(settings, address) for _ in range(_STREAM_CHANNELS)]
            for name, address in addresses.items()
        }
        self._turns = {name: itertools.cycle(made) for name, made in self._streams.items()}

    def unary(self, callee: str) -> grpc.aio.Channel:
        return self._unary[callee]

    def stream(self, callee: str) -> grpc.aio.Channel:
        return next(self._turns[callee])

    async def close(self) -> None:
        for channel in (*self._unary.values(), *itertools.chain(*self._streams.values())):
            await channel.close()
