"""Erased owners are refused, and a worker erases what is kept of them."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0004_erasure"
down_revision = "0003_webhook_pauses"


def upgrade() -> None:
    run_sql(op, "techfiles", Path(__file__).with_suffix(".sql"))
