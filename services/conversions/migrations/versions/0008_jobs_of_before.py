"""What triggers write of new jobs, for the jobs of before."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0008_jobs_of_before"
down_revision = "0007_lineage"


def upgrade() -> None:
    run_sql(op, "conversions", Path(__file__).with_suffix(".sql"))
