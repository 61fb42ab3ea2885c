"""Datasets."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0005_datasets"
down_revision = "0004_providers"


def upgrade() -> None:
    run_sql(op, "conversions", Path(__file__).with_suffix(".sql"))
