"""Operators see what failed for good, and requeue it."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0014_operators"
down_revision = "0013_trash"


def upgrade() -> None:
    run_sql(op, "conversions", Path(__file__).with_suffix(".sql"))
