"""Postgres: connections, statements, rows, state machines, migrations."""
