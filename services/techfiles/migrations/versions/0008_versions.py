"""Files say which version they restored; snapshots have a digest."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0008_versions"
down_revision = "0007_trash"


def upgrade() -> None:
    run_sql(op, "techfiles", Path(__file__).with_suffix(".sql"))
