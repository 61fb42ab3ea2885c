"""Rules of runs as pure functions and tables: states."""

from collections.abc import Mapping

RUN_STATES: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"running", "failed"}),
    "running": frozenset({"running", "pending", "done", "failed"}),
    "done": frozenset(),
    "failed": frozenset(),
}


def ended(state: str) -> bool:
    return not RUN_STATES[state]
