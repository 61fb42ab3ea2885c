"""Limits how many calls a server serves at once, in total and per owner."""

from contextlib import suppress
from contextvars import ContextVar

from shared.rpc import auth, errors
from shared.rpc.errors import DomainError, Reason

_NEVER_TOO_MANY = 8  # calls of one owner, so that a web page can load its pictures
_FEW = 2  # calls of one owner when only the places that are kept back are free
_FEWEST_OPEN = 32
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

    def take(self, identity: auth.Identity) -> Holder:
        """Takes a place; returns the holder for `give_back`. Raises OVERLOADED, TOO_MANY_CALLS."""
        free = self._most - self.taken
        if free <= 0:
            raise errors.retry_later(
                Reason.ERROR_REASON_OVERLOADED,
                "the server is busy; nothing was changed, try again",
                0.5,
            )
        # Calls that a service makes for an owner count separately: an owner's waiting calls must
        # not block the jobs that they wait for.
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
            del self._held[holder]  # otherwise the table would grow with every new owner


class Seat:
    """One call's place. A call that waits for a job moves to the places `waiting` if one is
    free."""

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

    def seat(self, places: Places, identity: auth.Identity) -> Seat:
        """Takes a place for the current call. Raises OVERLOADED, TOO_MANY_CALLS."""
        seat = Seat(places, self.streams, identity)
        _seat.set(seat)
        return seat

    def under_way(self) -> int:
        """Returns how many calls are being served, or are still cleaning up after their callers
        have gone."""
        return self.calls.taken + self.uploads.taken + self.streams.taken
