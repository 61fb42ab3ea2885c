"""Decisions about comparisons without any machinery: states, and the name under which they hold
pictures."""

from collections.abc import Mapping

STATES: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"processing", "failed"}),
    "processing": frozenset({"processing", "pending", "ready", "failed"}),
    "ready": frozenset(),
    "failed": frozenset(),
}
ENDED = frozenset({"ready", "failed"})


def holder(comparison_id: object) -> str:
    """The name under which a comparison holds its pictures."""
    return f"assets/comparisons/{comparison_id}"
