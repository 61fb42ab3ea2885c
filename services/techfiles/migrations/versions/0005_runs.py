"""Runs of products, of outside workers, retried; lists of files and runs by state."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0005_runs"
down_revision = "0004_erasure"


def upgrade() -> None:
    run_sql(op, "techfiles", Path(__file__).with_suffix(".sql"))
