"""Credits: accounts, the ledger of their entries, and budgets."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0006_money"
down_revision = "0005_datasets"


def upgrade() -> None:
    run_sql(op, "conversions", Path(__file__).with_suffix(".sql"))
