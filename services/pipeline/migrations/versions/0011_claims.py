"""Outside runners of the deployment claim phases of every owner, who take turns."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0011_claims"
down_revision = "0010_reviews"


def upgrade() -> None:
    run_sql(op, "pipeline", Path(__file__).with_suffix(".sql"))
