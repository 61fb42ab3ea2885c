"""A server as a process."""

import resource

from tests.suite import Suite


async def test_a_server_may_open_as_many_files_as_the_machine_allows(atelier: Suite) -> None:
    """Each download holds one, and thousands may be read slowly at once."""
    async with atelier.process("assets", open_files=200) as process:
        soft, hard = resource.prlimit(process, resource.RLIMIT_NOFILE)
    assert soft == hard > 200
