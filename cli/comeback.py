"""Decides when an ended process is started again, and reports it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

PAUSES = (0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 4.0, 8.0)
"""Seconds to wait before each restart of a process that keeps ending. The first three restarts come
at once; the last pause repeats."""
STEADY_SECONDS = 20.0

Report = Callable[[str], None]


@dataclass
class Comeback:
    """Restart schedule of one process: pauses grow until the process has run for 20 seconds.

    Each end is reported in one line until the pauses stop growing. A problem that keeps the process
    from starting is reported once, not at every restart.
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
        """True from `ended` or `failed` until `take_turn` returns True."""
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
        """Records that the process could not be started."""
        self._put_off()
        if problem != self._problem:
            self._problem = problem
            self.report(f"{self.name} can't be started: {problem}; trying again")

    def take_turn(self) -> bool:
        """Returns True once when the next restart is due."""
        if self._due is None or self.clock() < self._due:
            return False
        self._due, self._began = None, self.clock()
        return True

    def hurry(self) -> None:
        """Makes the next restart due at once, because its obstacle may be gone."""
        self._tries = 0
        if self.waits:
            self._due = self.clock()

    def runs(self) -> None:
        """Must be called while the process runs. After 20 seconds its earlier ends don't count."""
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
