"""Releases: what a collection held at one moment, and its documents."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0011_releases"
down_revision = "0010_fact_sources"


def upgrade() -> None:
    run_sql(op, "techfiles", Path(__file__).with_suffix(".sql"))
