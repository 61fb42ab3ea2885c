"""Clients that only connect."""

import resource
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.processes import Processes, until

pytestmark = pytest.mark.faults

_USUAL = 256  # the soft limit on open files for this test; on most systems it is 1,024


async def test_many_connections_leave_room_for_others(processes: Processes) -> None:
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_USUAL, most))
    try:
        server = processes.serve("assets")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))
    await server.healthy()

    async def all_taken_on() -> bool:
        return len(list(Path(f"/proc/{server.popen.pid}/fd").iterdir())) > _USUAL + 50

    with ExitStack() as idle:
        for _ in range(_USUAL + 50):
            idle.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        await until(all_taken_on, "every connection is taken on")
        await server.healthy()
