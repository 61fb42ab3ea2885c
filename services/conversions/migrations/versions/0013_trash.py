"""Jobs can be archived, deleted, undeleted and purged."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0013_trash"
down_revision = "0012_batches"


def upgrade() -> None:
    run_sql(op, "conversions", Path(__file__).with_suffix(".sql"))
