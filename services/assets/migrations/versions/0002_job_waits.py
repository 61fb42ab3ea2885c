"""What jobs wait for."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0002_job_waits"
down_revision = "0001_first_tables"


def upgrade() -> None:
    run_sql(op, "assets", Path(__file__).parent / "0002_job_waits.sql")
