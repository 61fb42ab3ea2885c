"""A private PostgreSQL for one machine: `EmbeddedPostgres` starts, revives and stops it."""

from cli.postgres.embedded import EmbeddedPostgres
from cli.postgres.failures import EmbeddedPostgresError
from cli.postgres.programs import server_binaries
from cli.postgres.server import how_it_ended

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "how_it_ended", "server_binaries"]
