"""Persons' consents to the use of their photographs, and what revoking one erased."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0010_consent"
down_revision = "0009_jobs_counted"


def upgrade() -> None:
    run_sql(op, "conversions", Path(__file__).with_suffix(".sql"))
