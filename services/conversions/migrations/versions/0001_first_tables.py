"""The first tables."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0001_first_tables"
down_revision = None


def upgrade() -> None:
    here = Path(__file__).parent
    run_sql(op, "conversions", here / "0001_common.sql", here / "0001_first_tables.sql")
