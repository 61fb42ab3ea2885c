"""Pictures know the jobs that they went into."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0007_lineage"
down_revision = "0006_money"


def upgrade() -> None:
    run_sql(op, "conversions", Path(__file__).with_suffix(".sql"))
