"""Reviews are due at a time and decided by several persons; results are counted for the report."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0010_reviews"
down_revision = "0009_phases"


def upgrade() -> None:
    run_sql(op, "pipeline", Path(__file__).with_suffix(".sql"))
