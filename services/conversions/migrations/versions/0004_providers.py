"""Providers of models have states, routes and a record of every call."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0004_providers"
down_revision = "0003_webhook_pauses"


def upgrade() -> None:
    run_sql(op, "conversions", Path(__file__).with_suffix(".sql"))
