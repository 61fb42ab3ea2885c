"""Jobs that changed while they were counted."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0009_jobs_counted"
down_revision = "0008_jobs_of_before"


def upgrade() -> None:
    run_sql(op, "conversions", Path(__file__).with_suffix(".sql"))
