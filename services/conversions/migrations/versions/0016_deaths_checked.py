"""Dead jobs that changed while they were noted."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0016_deaths_checked"
down_revision = "0015_died_before"


def upgrade() -> None:
    run_sql(op, "conversions", Path(__file__).with_suffix(".sql"))
