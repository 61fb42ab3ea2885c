"""Brings a service's schema up to date: roles, schemas, the job queue's tables, then Alembic's
revisions.

    <service>_owner    owns every table; it can't log in
    <service>_app      serves requests
    <service>_worker   runs background work, under its own policies

Revisions are SQL: a revision file runs the `.sql` file beside it as <service>_owner; the first one
of each service also runs that of the tables that all have. A lock timeout makes the migration fail
on a busy table; otherwise the service would hang.
"""

import importlib.resources
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

ROOT = Path(__file__).resolve().parents[2]
FIRST_COMMON_TABLES = Path(__file__).with_name("migrations") / "0001_common.sql"
"""What every service's first revision runs. As with any revision, it stays as it is; the tables of
today are in tables.sql."""

# Tables whose rows are never changed or deleted, by any login. Their policies say so too.
_APPEND_ONLY = {"conversions": ("credit_entries",)}
_LOCK = 7_261_101  # arbitrary, the same in all services: one migration at a time per database

# Finds the turn of an owner's next job, see shared/background/jobs.py. It sorts by `-priority`,
# which no other index has: with `priority` the planner may scan all owners' jobs in their order
# until it meets one of this owner.
_SHARES = """
    CREATE INDEX waiting_by_share ON procrastinate_jobs (queue_name, (args ->> 'share'),
        (-priority))
    WHERE status = 'todo'
"""
# Finds an owner's most urgent job, for jobs whose requests may state an urgency.
_URGENT = """
    CREATE INDEX waiting_by_urgency ON procrastinate_jobs (
        queue_name, (args ->> 'owner'), (-(args ->> 'urgency')::int), (args ->> 'row_id')
    ) WHERE status = 'todo' AND args ->> 'owner' IS NOT NULL
"""


class MigrationFailed(Exception):
    """The migration failed. The message is one line and names the next step."""


def migrate(service: str, admin_url: str, app_password: str, worker_password: str) -> None:
    """Runs every missing step. Safe to repeat, and to run from several machines at once.

    The role of `admin_url` must be able to create roles and schemas. Raises MigrationFailed.
    """
    try:
        with psycopg.connect(admin_url, autocommit=True, connect_timeout=5) as conn:
            conn.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
            _roles(conn, service, app_password, worker_password)
            _schemas(conn, service)
            _revisions(service, admin_url)
            _grants(conn, service)
    except psycopg.OperationalError as error:
        raise MigrationFailed(
            f"can't migrate {service}: {str(error).strip().splitlines()[0]}"
        ) from None


def _roles(
    conn: psycopg.Connection[Any], service: str, app_password: str, worker_password: str
) -> None:
    logins = {
        f"{service}_owner": None,
        f"{service}_app": app_password,
        f"{service}_worker": worker_password,
    }
    for role, password in logins.items():
        name = sql.Identifier(role)
        if not conn.execute("SELECT FROM pg_roles WHERE rolname = %s", (role,)).rowcount:
            try:
                conn.execute(
                    sql.SQL("CREATE ROLE {} NOLOGIN NOSUPERUSER NOBYPASSRLS NOINHERIT").format(name)
                )
            except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                pass  # roles are cluster-wide: another database's migration was faster
        if password is not None:
            conn.execute(
                sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal(password))
            )
    conn.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(f"{service}_owner")))


def _schemas(conn: psycopg.Connection[Any], service: str) -> None:
    owner = sql.Identifier(f"{service}_owner")
    jobs = f"{service}_jobs"
    conn.execute(
        sql.SQL("CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}").format(
            sql.Identifier(service), owner
        )
    )
    if conn.execute("SELECT FROM pg_namespace WHERE nspname = %s", (jobs,)).rowcount:
        return
    # The queue's schema file can't run twice, so it runs in the transaction that creates the
    # schema.
    queue = (importlib.resources.files("procrastinate.sql") / "schema.sql").read_text(
        encoding="utf-8"
    )
    with conn.transaction():
        conn.execute(
            sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}").format(sql.Identifier(jobs), owner)
        )
        conn.execute(sql.SQL("SET LOCAL ROLE {}").format(owner))
        conn.execute(sql.SQL("SET LOCAL search_path = {}").format(sql.Identifier(jobs)))
        conn.execute(queue)
        conn.execute(_SHARES)
        conn.execute(_URGENT)
        for row in conn.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = %s::regnamespace",
            (jobs,),
        ):
            _queue_policies(conn, service, sql.Identifier(row[0]))


def _queue_policies(conn: psycopg.Connection[Any], service: str, table: sql.Identifier) -> None:
    """Lets both logins see all queue rows, which hold only ids and a number for the owner.

    The owning role sees them too: when a dead worker's row is deleted, the foreign key updates its
    jobs as the tables' owner, and their triggers write events as that role.
    """
    roles = sql.SQL(", ").join(
        sql.Identifier(f"{service}_{role}") for role in ("app", "worker", "owner")
    )
    for statement in (
        "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        "CREATE POLICY queueing ON {table} TO {roles} USING (true)",
    ):
        conn.execute(sql.SQL(statement).format(table=table, roles=roles))


def _revisions(service: str, admin_url: str) -> None:
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine, pool

    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(admin_url), poolclass=pool.NullPool
    )
    config = Config()
    config.set_main_option("script_location", str(ROOT / "services" / service / "migrations"))
    config.attributes["engine"] = engine
    config.attributes["service"] = service
    command.upgrade(config, "head")


def _grants(conn: psycopg.Connection[Any], service: str) -> None:
    """Grants both logins their rights, which row-level security narrows. TRUNCATE ignores policies
    and is never granted, nor is a change of what is only added to."""
    for schema in (service, f"{service}_jobs"):
        for role in (f"{service}_app", f"{service}_worker"):
            names = {"schema": sql.Identifier(schema), "role": sql.Identifier(role)}
            for statement in (
                "GRANT USAGE ON SCHEMA {schema} TO {role}",
                "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}",
                "GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
            ):
                conn.execute(sql.SQL(statement).format(**names))
            for table in _APPEND_ONLY.get(schema, ()):
                revoke = sql.SQL("REVOKE UPDATE, DELETE ON {schema}.{table} FROM {role}")
                conn.execute(revoke.format(**names, table=sql.Identifier(table)))


# Used by the revision files and env.py of each service


def run_environment(context: Any) -> None:
    """Runs the revisions; it is all that a service's migrations/env.py calls."""
    service = context.config.attributes["service"]
    with context.config.attributes["engine"].connect() as connection:
        for setting in (
            "lock_timeout = '5s'",
            "statement_timeout = '10min'",
            f"ROLE {service}_owner",
            f"search_path = {service}",
        ):
            connection.exec_driver_sql(f"SET {setting}")
        connection.commit()
        # Each revision commits by itself, so that none holds its locks while a later one runs.
        context.configure(
            connection=connection,
            version_table_schema=service,
            version_table="alembic_version",
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()


def run_sql(op: Any, service: str, *paths: Path) -> None:
    """Runs SQL files in the revision's transaction; replaces `{service}` by the service's name."""
    connection = op.get_bind().connection.driver_connection
    for path in paths:
        connection.execute(path.read_text().replace("{service}", service))
