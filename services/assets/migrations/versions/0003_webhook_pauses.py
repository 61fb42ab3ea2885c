"""Webhook endpoints keep the pause that their receivers ask for."""

from pathlib import Path

from alembic import op

from shared.migrate import run_sql

revision = "0003_webhook_pauses"
down_revision = "0001_first_tables"


def upgrade() -> None:
    run_sql(op, "assets", Path(__file__).with_suffix(".sql"))
