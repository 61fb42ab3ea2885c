from alembic import context

from shared.migrate import run_environment

run_environment(context)
