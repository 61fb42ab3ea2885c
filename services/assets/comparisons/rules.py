"""Rules of comparisons as pure functions and tables: states, and the holder of references."""

from collections.abc import Mapping

STATES: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"processing", "failed"}),
    "processing": frozenset({"processing", "pending", "ready", "failed"}),
    "ready": frozenset(),
    "failed": frozenset(),
}
ENDED = frozenset({"ready", "failed"})


def holder(comparison_id: object) -> str:
    """Returns the holder of a comparison's references to its pictures."""
    return f"assets/comparisons/{comparison_id}"
