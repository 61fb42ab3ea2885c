"""Checks of histories, and what they found."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0009_verify"
down_revision = "0008_versions"


def upgrade() -> None:
    run_sql(op, "techfiles", Path(__file__).with_suffix(".sql"))
