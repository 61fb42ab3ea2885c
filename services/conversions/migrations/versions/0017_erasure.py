"""Erased owners are refused, and a worker erases what is kept of them."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0017_erasure"
down_revision = "0016_deaths_checked"


def upgrade() -> None:
    run_sql(op, "conversions", Path(__file__).with_suffix(".sql"))
