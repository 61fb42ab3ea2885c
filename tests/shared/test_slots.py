"""Slots that holders take in turns: who gets the next one, and that none is lost."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from shared.background.turns import Turns


class Line:
    """Waiters named after their holder ('ada-1'); each holds its slot until it is let go."""

    def __init__(self, turns: Turns) -> None:
        self.served: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._turns = turns
        self._let_go: dict[str, asyncio.Event] = {}

    async def come(self, *names: str) -> None:
        for name in names:
            self._let_go[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._wait(name))
            await settled()

    async def _wait(self, name: str) -> None:
        async with self._turns.slot(name.partition("-")[0]):
            self.served.append(name)
            await self._let_go[name].wait()

    async def let_go(self, *names: str) -> None:
        for name in names:
            self._let_go[name].set()
            await settled()

    async def let_all_go(self) -> None:
        for name in self.served:  # this list grows meanwhile
            await self.let_go(name)


async def settled() -> None:
    """Waits until no task has anything to do."""
    for _ in range(10):
        await asyncio.sleep(0)


@asynccontextmanager
async def line(slots: int, *, leave_room: bool = False) -> AsyncIterator[Line]:
    """Checks at the end that nobody holds or waits for a slot, and that all slots are free."""
    turns = Turns(slots, leave_room=leave_room)
    made = Line(turns)
    yield made
    for task in made.tasks.values():
        task.cancel()
    await asyncio.gather(*made.tasks.values(), return_exceptions=True)
    assert (turns._free, dict(turns._held), dict(turns._waiting)) == (slots, {}, {})


def named(name: str, numbers: Sequence[int]) -> list[str]:
    return [f"{name}-{number}" for number in numbers]


async def test_holders_take_turns_and_each_ones_waiters_keep_their_order() -> None:
    async with line(1) as waiters:
        await waiters.come(*named("ada", range(4)), *named("bob", range(3)), "eve-0")
        await waiters.let_all_go()

    assert waiters.served == [
        "ada-0",
        "bob-0",
        "eve-0",
        "ada-1",
        "bob-1",
        "ada-2",
        "bob-2",
        "ada-3",
    ]


async def test_who_comes_while_another_has_all_slots_gets_the_first_that_is_free() -> None:
    async with line(3) as waiters:
        await waiters.come(*named("ada", range(6)))
        assert waiters.served == named("ada", range(3)), "a holder alone has all"
        await waiters.come("bob-0")
        await waiters.let_go("ada-1")
        assert waiters.served[3:] == ["bob-0"]


async def test_who_has_fewer_comes_first() -> None:
    """A holder of short turns needn't wait for the long ones of another."""
    async with line(2) as waiters:
        await waiters.come(*named("ada", range(4)), *named("bob", range(4)))
        await waiters.let_go("ada-0", "bob-0", "bob-1", "bob-2")
        assert waiters.served == ["ada-0", "ada-1", *named("bob", range(4))]
        await waiters.let_go("ada-1")
        assert waiters.served[-1] == "ada-2"


async def test_holders_who_keep_coming_keep_nobody_from_its_turn() -> None:
    async with line(1) as waiters:
        await waiters.come("ada-0", "ada-1", "guest0-0")
        for number in range(10):
            await waiters.come(f"guest{number + 1}-0")
            await waiters.let_go(waiters.served[-1])
    assert waiters.served.index("ada-1") == 3, "behind the two who came while ada had the slot"


async def test_room_is_left_for_who_comes_next() -> None:
    async with line(16, leave_room=True) as waiters:
        await waiters.come(
            *named("ada", range(20)), *named("bob", range(20)), "eve-0", "eve-1", "dan-0"
        )
        assert waiters.served == [
            *named("ada", range(8)),
            *named("bob", range(4)),
            "eve-0",
            "eve-1",
            "dan-0",
        ]

        await waiters.let_go("ada-0", "ada-1", "ada-2")
        assert len(waiters.served) == 15, "ada has more than a share, now that others want theirs"
        await waiters.let_all_go()
        assert len(waiters.served) == 43, "all are served in the end"


async def test_a_waiter_that_goes_is_passed_over() -> None:
    async with line(1) as waiters:
        await waiters.come("ada-0", "bob-0", "bob-1", "ada-1")
        waiters.tasks["bob-0"].cancel()
        await waiters.let_all_go()
    assert waiters.served == ["ada-0", "bob-1", "ada-1"]


async def test_a_waiter_that_goes_at_any_moment_around_its_turn_passes_it_on() -> None:
    """The waiter goes before it knows that it was given a slot, when it has just learnt it, or as
    soon as it has begun."""
    ends = set()
    for steps in range(8):  # steps of the loop between freeing the slot and cancelling the waiter
        async with line(1) as waiters:
            await waiters.come("ada-0", "bob-0", "eve-0")
            going = asyncio.create_task(waiters.let_go("ada-0"))
            for _ in range(steps):
                await asyncio.sleep(0)
            waiters.tasks["bob-0"].cancel()
            await going

            await settled()
            assert waiters.served[-1] == "eve-0"
            ends.add(len(waiters.served))
    assert ends == {2, 3}, "bob wasn't served and was"
