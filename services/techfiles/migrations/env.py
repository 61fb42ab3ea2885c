from alembic import context

from shared.database.migrate import run_environment

run_environment(context)
