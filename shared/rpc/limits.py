"""Limits how many calls a server serves at once, in total and per owner."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar

from shared.rpc import auth, errors
from shared.rpc.errors import DomainError, Reason

TURN_AWAY_SECONDS = 1.0  # for which a stopping server still takes calls
_NEVER_TOO_MANY = 8  # calls of one owner, so that a web page can load its pictures
_FEW = 2  # calls of one owner when only the places that are kept back are free
_FEWEST_OPEN = 32
# A burst of short calls is served within seconds; refused, each would come back several times.
QUEUE_SECONDS = 5.0
_QUEUED_PER_PLACE = 4  # waiting calls, which cost a little memory each
Holder = tuple[str, str | None]


class Places:
    """The places for calls of one kind in this process; each call holds one.

    A quarter is kept back for owners that hold almost none: waiting calls may hold their places for
    minutes, and a handful of owners must not block the server for all. Of the rest an owner may
    hold as many as are still free: half of them when it is alone, a third beside another that wants
    as many, and so on. This needs no setting for the number of busy owners.
    """

    def __init__(self, most: int) -> None:
        self.taken = 0
        self._most = most
        self._kept_back = most // 4
        self._held: dict[Holder, int] = {}
        self._queues: OrderedDict[Holder, deque[asyncio.Future[None]]] = OrderedDict()
        self._queued = 0

    def take(self, identity: auth.Identity) -> Holder:
        """Takes a place; returns the holder for `give_back`. Raises OVERLOADED, TOO_MANY_CALLS."""
        holder = _holder(identity)
        if not self._may_have_another(holder):
            raise self._refusal(holder, identity)
        self._give(holder)
        return holder

    async def take_within(self, identity: auth.Identity, seconds: Callable[[], float]) -> Holder:
        """Does the same as `take`, but waits for a place for a while. Calls of one owner get theirs
        in the order in which they came, and owners take turns. Of the room for waiting calls, too,
        an owner has as much as is still free."""
        holder = _holder(identity)
        if holder not in self._queues and self._may_have_another(holder):
            self._give(holder)
            return holder
        room = _QUEUED_PER_PLACE * self._most - self._queued
        if len(self._queues.get(holder, ())) >= room:
            raise self._refusal(holder, identity)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(holder, deque()).append(turn)
        self._queued += 1
        try:
            await asyncio.wait((turn,), timeout=seconds())
        except asyncio.CancelledError:
            if turn.done():
                self.give_back(holder)
            else:
                self._leave(holder, turn)
            raise
        if turn.done():
            return holder
        self._leave(holder, turn)
        raise self._refusal(holder, identity)

    def give_back(self, holder: Holder) -> None:
        self.taken -= 1
        left = self._held[holder] - 1
        if left:
            self._held[holder] = left
        else:
            del self._held[holder]  # otherwise the table would grow with every new owner
        if self._queues:
            self._hand_out()

    def _may_have_another(self, holder: Holder) -> bool:
        free = self._most - self.taken
        return free > 0 and self._held.get(holder, 0) < self._share(free)

    def _share(self, free: int) -> int:
        """Returns how many places a holder may have while so many are free."""
        open_to_all = free - self._kept_back
        return max(open_to_all, _NEVER_TOO_MANY) if open_to_all > 0 else _FEW

    def _give(self, holder: Holder) -> None:
        self.taken += 1
        self._held[holder] = self._held.get(holder, 0) + 1

    def _hand_out(self) -> None:
        for holder in list(self._queues):
            if self.taken == self._most:
                return
            if self._may_have_another(holder):
                turn = self._queues[holder][0]
                self._leave(holder, turn)
                if holder in self._queues:
                    self._queues.move_to_end(holder)
                self._give(holder)
                turn.set_result(None)

    def _leave(self, holder: Holder, turn: "asyncio.Future[None]") -> None:
        queue = self._queues[holder]
        queue.remove(turn)
        self._queued -= 1
        if not queue:
            del self._queues[holder]

    def _refusal(self, holder: Holder, identity: auth.Identity) -> DomainError:
        if self.taken >= self._most:
            text = "the server is busy; nothing was changed, try again"
            return errors.retry_later(Reason.ERROR_REASON_OVERLOADED, text, 0.5)
        whose = "this owner" if holder[0] == identity.owner else "all anonymous callers together"
        if holder[0].startswith("address:"):
            whose = "this address without a token"
        text = (
            f"{self._held.get(holder, 0)} calls of {whose} are under way; nothing was changed, let"
            " some end, then try again"
        )
        return errors.retry_later(Reason.ERROR_REASON_TOO_MANY_CALLS, text, 1)


def _holder(identity: auth.Identity) -> Holder:
    # Calls that a service makes for an owner count separately: an owner's waiting calls must not
    # block the jobs that they wait for.
    return auth.share_of(identity.owner), identity.service


class Seat:
    """One call's place. A call that waits for a job moves to the places `waiting` if one is
    free."""

    def __init__(
        self, places: Places, holder: Holder, waiting: Places, identity: auth.Identity
    ) -> None:
        self._places = places
        self._holder = holder
        self._waiting = waiting
        self._identity = identity

    def leave(self) -> None:
        self._places.give_back(self._holder)

    def wait(self) -> None:
        if self._places is not self._waiting:
            with suppress(DomainError):
                holder = self._waiting.take(self._identity)
                self.leave()
                self._places, self._holder = self._waiting, holder


_seat: ContextVar[Seat] = ContextVar("seat")


def wait_apart() -> None:
    """Moves the current call to the places of streams for the rest of its time, if its owner can
    have one."""
    _seat.get().wait()


class Limits:
    """The limits that the guard of every method enforces.

    Calls that stream a request in are counted separately and fewer are allowed, since each lasts as
    long as its sender likes. Calls that stream answers cost little while they wait, as do calls
    that wait for a job, so these two are counted together. Streams without a token (health,
    reflection) are counted separately, so that they take no place of a caller with a token."""

    def __init__(
        self, *, max_in_flight: int, max_streams: int, default_deadline: float, max_deadline: float
    ) -> None:
        self.calls = Places(max_in_flight)
        self.uploads = Places(max_in_flight // 4)
        self.streams = Places(max_streams)
        self.open_streams = Places(max(_FEWEST_OPEN, max_streams // 16))
        self.default_deadline = default_deadline
        self.max_deadline = max_deadline

    async def seat(
        self, places: Places, identity: auth.Identity, patience: Callable[[], float]
    ) -> Seat:
        """Takes a place for the current call, and waits for one a moment if it is unary. Raises
        OVERLOADED, TOO_MANY_CALLS."""
        if places is self.calls:
            holder = await places.take_within(identity, patience)
        else:
            holder = places.take(identity)
        seat = Seat(places, holder, self.streams, identity)
        _seat.set(seat)
        return seat

    def under_way(self) -> int:
        """Returns how many calls are being served, or are still cleaning up after their callers
        have gone."""
        return self.calls.taken + self.uploads.taken + self.streams.taken
