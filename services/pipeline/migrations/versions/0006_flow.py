"""Products have a condition and images from URLs; results and reviews keep who says each value."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0006_flow"
down_revision = "0005_erasure"


def upgrade() -> None:
    run_sql(op, "pipeline", Path(__file__).with_suffix(".sql"))
