"""The web process of the tests: in the test's own event loop, before real services."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.suite import Suite
from web.app import Server, Web


@asynccontextmanager
async def serving(suite: Suite) -> AsyncIterator[str]:
    """Serves the services that the suite runs. Yields the URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = Server(Web(suite.settings("web", "app")))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@pytest.fixture
async def web(suite: Suite) -> AsyncIterator[str]:
    """The URL of a web process before assets, which the tests start."""
    await suite.serve("assets")
    async with serving(suite) as url:
        yield url
