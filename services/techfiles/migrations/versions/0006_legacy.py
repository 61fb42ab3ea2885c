"""An older application's table of analyses is read, written beside and carried over."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0006_legacy"
down_revision = "0005_runs"


def upgrade() -> None:
    run_sql(op, "techfiles", Path(__file__).with_suffix(".sql"))
