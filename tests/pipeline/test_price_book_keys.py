"""Books imported when names ignored only case and spaces are compared by today's rules after the
migration."""

import importlib

import psycopg
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import create_engine, pool

from services.pipeline.price_csv import folded
from shared.database.ids import new_id
from tests.suite import Cluster

REVISION = importlib.import_module("services.pipeline.migrations.versions.0003_price_book_keys")
INSERT = """
    INSERT INTO pipeline.price_book_entries (id, owner, brand, model, name, marketplace, category,
        link, price,
        currency, brand_key, model_key, name_key, marketplace_key, updated_at)
    VALUES (%(id)s, %(owner)s, '', '', %(name)s, '', '', '', %(price)s, 'EUR',
        '', '', %(key)s, '', now() - make_interval(days => %(age)s))
"""


def imported(
    conn: "psycopg.Connection[tuple[object, ...]]", owner: str, name: str, price: float, age: int
) -> None:
    """Inserts an offer with the key of that time."""
    key = " ".join(name.casefold().split())
    values = {"id": new_id(), "owner": owner, "name": name, "key": key, "price": price, "age": age}
    conn.execute(INSERT, values)


def upgrade(url: str) -> None:
    """Runs the one revision, as its owner, on a database that has all of them."""
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=pool.NullPool
    )
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL ROLE pipeline_owner")
        connection.exec_driver_sql("SET LOCAL search_path = pipeline")
        with Operations.context(MigrationContext.configure(connection)):
            REVISION.upgrade()


def test_old_keys_are_folded_anew(cluster: Cluster) -> None:
    database = cluster.clone()
    try:
        with psycopg.connect(cluster.url(database), autocommit=True) as conn:
            imported(conn, "user:ada", "Coat", 1, 0)
            imported(conn, "user:ada", "Be\u0301ret", 2, 1)
            imported(conn, "user:bob", "FJ\u2011100", 3, 5)
            imported(conn, "user:bob", "FJ-100", 4, 1)
            imported(conn, "user:eve", "FJ\u2011100", 5, 1)
            imported(conn, "user:eve", "FJ-100", 6, 5)
            upgrade(cluster.url(database))
            rows = conn.execute(
                "SELECT name_key, price FROM pipeline.price_book_entries ORDER BY price"
            ).fetchall()
            assert rows == [("coat", 1), (folded("B\u00e9ret"), 2), ("fj-100", 4), ("fj-100", 5)]

            forced = conn.execute(
                "SELECT relforcerowsecurity FROM pg_class WHERE relname = 'price_book_entries'"
            )
            assert forced.fetchall() == [(True,)]
    finally:
        cluster.drop(database)
