"""The first tables."""

from pathlib import Path

from alembic import op

from shared.database.migrate import FIRST_COMMON_TABLES, run_sql

revision = "0001_first_tables"
down_revision = None


def upgrade() -> None:
    run_sql(op, "conversions", FIRST_COMMON_TABLES, Path(__file__).with_suffix(".sql"))
