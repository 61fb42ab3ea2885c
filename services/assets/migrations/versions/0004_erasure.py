"""An erasure reaches the other services, which tell how far they are."""

from pathlib import Path

from alembic import op

from shared.database.migrate import run_sql

revision = "0004_erasure"
down_revision = "0003_webhook_pauses"


def upgrade() -> None:
    run_sql(op, "assets", Path(__file__).with_suffix(".sql"))
