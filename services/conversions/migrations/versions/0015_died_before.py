"""Dead jobs of before are noted."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0015_died_before"
down_revision = "0014_operators"


def upgrade() -> None:
    run_sql(op, "conversions", Path(__file__).with_suffix(".sql"))
