"""Market endpoints beside price books; offers in several currencies; products of which nothing was
found on the market."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0007_market"
down_revision = "0006_flow"


def upgrade() -> None:
    run_sql(op, "pipeline", Path(__file__).with_suffix(".sql"))
