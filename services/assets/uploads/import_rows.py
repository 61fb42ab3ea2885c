"""Imports: the row of the job that fetches an asset's bytes from a URL."""

from dataclasses import dataclass
from uuid import UUID

from shared.background.job_tables import JobRow
from shared.database.rows import Table

TASK = "import_asset"
QUEUE = "imports"


@dataclass(slots=True)
class Import(JobRow):
    asset_id: UUID
    url: str
    declared_sha256: str


IMPORTS = Table("imports", Import)


def without_secrets(url: str) -> str:
    """Returns the URL without its query, which may hold a secret."""
    return url.partition("?")[0]
