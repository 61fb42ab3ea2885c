"""Slots that holders take turns for, so that whoever asks for many delays whoever asks for one by
one turn at most."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """So many slots. One that is free goes to the holder who has the fewest, among equals to the
    one whose turn was longest ago, and with that holder to whoever came first. A holder alone may
    have all of them.

    `leave_room`: a holder gets another one only while more are free than it has: half of them
    alone, a third beside another that wants as many, and so on. So there is usually one for who
    comes next, however long the others take.
    """

    def __init__(self, slots: int, *, leave_room: bool = False) -> None:
        self._free = slots
        self._leave_room = leave_room
        # Holders come and go: what has none and waits for none is in neither.
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, OrderedDict[asyncio.Future[None], None]] = OrderedDict()

    @asynccontextmanager
    async def slot(self, holder: str) -> AsyncIterator[None]:
        """Waits for a slot, and has it within the context. To wait no longer, be cancelled."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(holder, OrderedDict())[turn] = None
        self._hand_out()
        try:
            await asyncio.shield(
                turn
            )  # a waiter that is cancelled may be given its slot before it knows
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
        del self._waiting[holder][turn]
        if not self._waiting[holder]:
            del self._waiting[holder]

    def _give_back(self, holder: str) -> None:
        self._free += 1
        self._held[holder] -= 1
        if not self._held[holder]:
            del self._held[holder]
        if holder in self._waiting:
            self._waiting.move_to_end(holder)  # it had a turn while others came
        self._hand_out()
