"""Webhook endpoints keep the pause that their receivers ask for."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0003_webhook_pauses"
down_revision = "0002_job_waits"


def upgrade() -> None:
    run_sql(op, "assets", Path(__file__).with_suffix(".sql"))
