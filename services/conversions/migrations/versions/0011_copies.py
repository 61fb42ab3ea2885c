"""Copies of pictures with a visible label."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0011_copies"
down_revision = "0010_consent"


def upgrade() -> None:
    run_sql(op, "conversions", Path(__file__).with_suffix(".sql"))
