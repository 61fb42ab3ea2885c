"""Files, collections, exports and runs are deleted, undeleted and purged; facts have versions."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0007_trash"
down_revision = "0006_legacy"


def upgrade() -> None:
    run_sql(op, "techfiles", Path(__file__).with_suffix(".sql"))
