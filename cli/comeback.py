"""When something that ended is started again, and what is said of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

PAUSES = (0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each try while what was started doesn't last: what was killed three times comes
back at once. The last pause is kept to."""
STEADY_SECONDS = 20.0

Report = Callable[[str], None]


@dataclass
class Comeback:
    """Of one process: how long it has to wait, until it has run for 20 seconds. Each end is told in
    a line, but not any more once the pauses don't grow; and a problem that keeps it from starting
    once, not at every try.
    """

    name: str
    report: Report
    clock: Callable[[], float] = time.monotonic
    _tries: int = 0
    _due: float | None = None
    _began: float = 0.0
    _problem: str = ""

    @property
    def waits(self) -> bool:
        """True from `ended` or `failed` until `take_turn` says yes."""
        return self._due is not None

    def ended(self, how: str) -> None:
        pause = self._put_off()
        if self._tries <= len(PAUSES):
            when = (
                ""
                if not pause
                else f" every {pause:.0f} s"
                if pause == PAUSES[-1]
                else f" in {pause:.0f} s"
            )
            self.report(f"{self.name} {how}; starting it again{when}")

    def failed(self, problem: str) -> None:
        """It could not even be started."""
        self._put_off()
        if problem != self._problem:
            self._problem = problem
            self.report(f"{self.name} can't be started: {problem}; trying again")

    def take_turn(self) -> bool:
        """True once when the time of the next try has come."""
        if self._due is None or self.clock() < self._due:
            return False
        self._due, self._began = None, self.clock()
        return True

    def hurry(self) -> None:
        """What stood in its way may have gone: the next try comes at once."""
        self._tries = 0
        if self.waits:
            self._due = self.clock()

    def runs(self) -> None:
        """To be called while it does. After a while what was before is forgotten."""
        if self._problem:
            self.report(f"{self.name} is back")
            self._problem, self._tries = "", 0
        if self._tries and self.clock() - self._began > STEADY_SECONDS:
            if self._tries > len(PAUSES):
                self.report(f"{self.name} has been running for {STEADY_SECONDS:.0f} s")
            self._tries = 0

    def _put_off(self) -> float:
        pause = PAUSES[min(self._tries, len(PAUSES) - 1)]
        self._tries += 1
        self._due = self.clock() + pause
        return pause
