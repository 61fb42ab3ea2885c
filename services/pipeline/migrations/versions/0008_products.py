"""Products change, are found by words, archived and moved to the trash; images show their files."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0008_products"
down_revision = "0007_market"


def upgrade() -> None:
    run_sql(op, "pipeline", Path(__file__).with_suffix(".sql"))
