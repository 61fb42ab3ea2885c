"""Erased owners are refused, and a worker erases what is kept of them."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0005_erasure"
down_revision = "0004_webhook_pauses"


def upgrade() -> None:
    run_sql(op, "pipeline", Path(__file__).with_suffix(".sql"))
