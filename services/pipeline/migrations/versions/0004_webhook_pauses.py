"""Webhook endpoints keep the pause that their receivers ask for."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0004_webhook_pauses"
down_revision = "0003_price_book_keys"


def upgrade() -> None:
    run_sql(op, "pipeline", Path(__file__).with_suffix(".sql"))
