"""One-time setup of a deployment: keys, schemas, login URLs as secret files, the bucket."""

import json
from collections.abc import Callable
from urllib.parse import quote, urlsplit, urlunsplit

from cli.state import State, write_private
from shared.settings import SERVICES, Settings


def migrate_all(state: State, admin_url: str, report: Callable[[str], None]) -> None:
    """Migrates every schema, and writes a directory `secrets/<service>-<role>` for
    ATELIER_SECRETS_DIR per login.

    Raises MigrationFailed.
    """
    from shared.database.migrate import migrate

    state.prepare()
    for name in SERVICES:
        report(f"{name}: schema")
        migrate(name, admin_url, state.password(name, "app"), state.password(name, "worker"))
        for role in ("app", "worker"):
            directory = state.directory / "secrets" / f"{name}-{role}"
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            url = login_url(admin_url, f"{name}_{role}", state.password(name, role))
            write_private(directory / "database_url", url)


def login_url(admin_url: str, role: str, password: str) -> str:
    """Returns the URL with which a role logs in to the database of `admin_url`."""
    parts = urlsplit(admin_url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{role}:{quote(password)}@{host}"))


def make_bucket(settings: Settings) -> None:
    """Creates the bucket if it is missing, with its objects under public/ readable by everyone. An
    existing bucket stays as it is.

    Raises botocore's ClientError when the store refuses, its BotoCoreError when it can't be
    reached.
    """
    import boto3
    from botocore.exceptions import ClientError

    client = boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key.get_secret_value(),
        aws_secret_access_key=settings.s3_secret_key.get_secret_value(),
    )
    try:
        client.head_bucket(Bucket=settings.s3_bucket)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        client.create_bucket(Bucket=settings.s3_bucket)
        public = f"arn:aws:s3:::{settings.s3_bucket}/public/*"
        statement = {
            "Effect": "Allow",
            "Principal": "*",
            "Action": "s3:GetObject",
            "Resource": public,
        }
        client.put_bucket_policy(
            Bucket=settings.s3_bucket, Policy=json.dumps({"Statement": [statement]})
        )
    finally:
        client.close()
