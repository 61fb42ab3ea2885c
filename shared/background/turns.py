"""Slots that holders take in turns: a holder that asks for many delays one that asks for one by at
most one turn."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """A fixed number of slots. A free slot goes to the waiting holder that has the fewest, among
    equals to the one whose last turn was longest ago, and there to its earliest request. A holder
    alone may have all slots.

    With `leave_room`, a holder gets another slot only while more are free than it has: half of them
    when it is alone, a third beside another that wants as many, and so on. So a newcomer usually
    finds a free slot, however long the others keep theirs.
    """

    def __init__(self, slots: int, *, leave_room: bool = False) -> None:
        self._free = slots
        self._leave_room = leave_room
        # A holder without slots and requests is in neither, so that these don't grow for ever.
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, OrderedDict[asyncio.Future[None], None]] = OrderedDict()
        self._queued = 0

    @asynccontextmanager
    async def slot(self, holder: str) -> AsyncIterator[None]:
        """Waits for a slot and holds it within the context. Cancel the task to stop waiting."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queued += 1
        self._waiting.setdefault(holder, OrderedDict())[turn] = None
        self._hand_out()
        try:
            # The shield keeps a cancelled waiter from losing a slot that it was just given.
            await asyncio.shield(turn)
        except asyncio.CancelledError:
            if turn.done():
                self._give_back(holder)
            else:
                self._leave(holder, turn)
            raise
        try:
            yield
        finally:
            self._give_back(holder)

    def is_full(self, holder: str, most: int) -> bool:
        """Returns whether the holder may not wait, too, where `most` requests may. Of this room
        each holder has as much as is still free."""
        return len(self._waiting.get(holder, ())) >= most - self._queued

    def _hand_out(self) -> None:
        while allowed := [holder for holder in self._waiting if self._may_have_another(holder)]:
            holder = min(allowed, key=self._held.__getitem__)
            turn = next(iter(self._waiting[holder]))
            self._waiting.move_to_end(holder)
            self._leave(holder, turn)
            self._free -= 1
            self._held[holder] += 1
            turn.set_result(None)

    def _may_have_another(self, holder: str) -> bool:
        return self._free > (self._held[holder] if self._leave_room else 0)

    def _leave(self, holder: str, turn: asyncio.Future[None]) -> None:
        self._queued -= 1
        del self._waiting[holder][turn]
        if not self._waiting[holder]:
            del self._waiting[holder]

    def _give_back(self, holder: str) -> None:
        self._free += 1
        self._held[holder] -= 1
        if not self._held[holder]:
            del self._held[holder]
        if holder in self._waiting:
            self._waiting.move_to_end(holder)  # its turn ended just now: others go first
        self._hand_out()
