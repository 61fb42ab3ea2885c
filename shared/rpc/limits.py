"""How many calls a server takes on at once, and whose."""

from contextlib import suppress
from contextvars import ContextVar

from shared.rpc import auth, errors
from shared.rpc.errors import DomainError, Reason

_NEVER_TOO_MANY = 8  # of one owner, for a page that asks for its pictures
_FEW = 2  # that an owner gets of what is kept back
_FEWEST_OPEN = 32
Holder = tuple[str, str | None]


class Places:
    """So many calls of one kind at once in this process.

    A quarter is kept back for owners who hold next to none: calls that wait may hold their places
    for minutes, and a handful of owners must not close the server to all. Of the rest an owner may
    hold as many as are free: half of them alone, a third beside another that wants as many, and so
    on. No figure has to be set for how many owners are busy.
    """

    def __init__(self, most: int) -> None:
        self.taken = 0
        self._most = most
        self._kept_back = most // 4
        self._held: dict[Holder, int] = {}

    def take(self, identity: auth.Identity) -> Holder:
        """A place; returns what `give_back` needs. Raises OVERLOADED, TOO_MANY_CALLS."""
        free = self._most - self.taken
        if free <= 0:
            raise errors.retry_later(
                Reason.ERROR_REASON_OVERLOADED,
                "the server is busy; nothing was changed, try again",
                0.5,
            )
        # What a service calls for an owner counts apart: an owner's waiting calls must not stop the
        # jobs they wait for.
        holder = auth.share_of(identity.owner), identity.service
        held = self._held.get(holder, 0)
        open_to_all = free - self._kept_back
        if held >= (max(open_to_all, _NEVER_TOO_MANY) if open_to_all > 0 else _FEW):
            whose = (
                "this owner" if holder[0] == identity.owner else "all anonymous callers together"
            )
            if holder[0].startswith("address:"):
                whose = "this address without a token"
            text = (
                f"{held} calls of {whose} are under way; nothing was changed, let some end, then"
                " try again"
            )
            raise errors.retry_later(Reason.ERROR_REASON_TOO_MANY_CALLS, text, 1)
        self.taken += 1
        self._held[holder] = held + 1
        return holder

    def give_back(self, holder: Holder) -> None:
        self.taken -= 1
        left = self._held[holder] - 1
        if left:
            self._held[holder] = left
        else:
            del self._held[holder]  # owners come and go; the table must not grow


class Seat:
    """One call's place. One that waits for a job changes over to `waiting`, if there is room."""

    def __init__(self, places: Places, waiting: Places, identity: auth.Identity) -> None:
        self._places = places
        self._waiting = waiting
        self._identity = identity
        self._holder = places.take(identity)

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
    """Counts the call being served among those that wait, for the rest of its time."""
    _seat.get().wait()


class Limits:
    """What the guard of every method enforces. Calls that stream a request in are counted apart,
    and fewer of them are allowed: each may last as long as its sender likes. Those that stream
    answers cost little while they wait, and so do calls that wait for a job, which are counted with
    them. Streams without a token, of health and reflection, are counted apart: nobody without one
    takes a caller's place."""

    def __init__(
        self, *, max_in_flight: int, max_streams: int, default_deadline: float, max_deadline: float
    ) -> None:
        self.calls = Places(max_in_flight)
        self.uploads = Places(max_in_flight // 4)
        self.streams = Places(max_streams)
        self.open_streams = Places(max(_FEWEST_OPEN, max_streams // 16))
        self.default_deadline = default_deadline
        self.max_deadline = max_deadline

    def seat(self, places: Places, identity: auth.Identity) -> Seat:
        """A place for the call being served. Raises OVERLOADED, TOO_MANY_CALLS."""
        seat = Seat(places, self.streams, identity)
        _seat.set(seat)
        return seat

    def under_way(self) -> int:
        """How many calls are being served, or take back what they began since their callers have
        gone."""
        return self.calls.taken + self.uploads.taken + self.streams.taken
