"""References are bound to the service that acquired them."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0005_bound_references"
down_revision = "0004_erasure"


def upgrade() -> None:
    run_sql(op, "assets", Path(__file__).with_suffix(".sql"))
