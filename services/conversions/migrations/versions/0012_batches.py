"""Many conversions or generations are asked for at once."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0012_batches"
down_revision = "0011_copies"


def upgrade() -> None:
    run_sql(op, "conversions", Path(__file__).with_suffix(".sql"))
