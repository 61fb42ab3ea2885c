"""Earlier versions of facts keep the sources of their values."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0010_fact_sources"
down_revision = "0009_verify"


def upgrade() -> None:
    run_sql(op, "techfiles", Path(__file__).with_suffix(".sql"))
