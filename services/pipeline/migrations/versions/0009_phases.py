"""Phases run again, past results stay readable, and a phase can be paused for everyone."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0009_phases"
down_revision = "0008_products"


def upgrade() -> None:
    run_sql(op, "pipeline", Path(__file__).with_suffix(".sql"))
