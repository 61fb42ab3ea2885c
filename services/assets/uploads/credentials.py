"""Reads the content credentials of an uploaded picture, and chooses what is kept of them."""

from pathlib import Path
from uuid import UUID

from psycopg.types.json import Jsonb

from services.assets.core.asset_rows import Asset
from shared import imaging
from shared.database.db import Mutation
from shared.database.rows import Command
from shared.formats import names
from shared.imaging import Credentials, ImageRejected, ImagingPool

_SECONDS = 10.0
_INSERT_MANIFEST_STORE = Command("""
    INSERT INTO manifest_stores (owner, asset_id, store)
    VALUES (%(owner)s, %(asset_id)s, %(store)s)
""")


class CredentialsReader:
    """Reads the credentials in an uploaded file. `trust_anchors`: a PEM file of the certificates
    whose signers are trusted."""

    def __init__(self, pool: ImagingPool, trust_anchors: Path | None) -> None:
        self._pool = pool
        self._trust_anchors = trust_anchors.read_text() if trust_anchors else ""

    async def read(self, path: Path, facts: imaging.Facts) -> Credentials | None:
        """Returns None for a PDF, and for an image without a manifest. A manifest never makes an
        upload fail: one that the child process can't cope with is reported as unreadable."""
        if not facts.may_have_manifest:
            return None
        try:
            return await self._pool.run(
                imaging.read_credentials,
                path,
                facts.mime_type,
                self._trust_anchors,
                timeout=_SECONDS,
            )
        except ImageRejected:
            return Credentials(state="unreadable")


def kept(
    asset: Asset, facts: imaging.Facts, credentials: Credentials | None
) -> tuple[str, Jsonb | None]:
    """Returns what the asset's row keeps: its source type, and its credentials in short.

    The source type is the one that the uploading service declared; else that of a trusted or valid
    manifest; else that of the XMP, which anybody may have written.
    """
    said = (asset.provenance or {}).get("digital_source_type", "")
    if not said and credentials and credentials.state in ("trusted", "valid"):
        said = credentials.source_type
    short = None
    if credentials:
        short = {
            "state": credentials.state,
            "digital_source_type": credentials.source_type,
            "claim_generator": names.shown(credentials.claim_generator),
            "signer": names.shown(credentials.signer),
            "signer_name": names.shown(credentials.signer_name),
            "sign_time": names.shown(credentials.signed_at),
            "problems": [names.shown(problem) for problem in credentials.problems],
            "manifest_kept": bool(credentials.manifest_store),
        }
    return said or facts.source_type, Jsonb(short) if short else None


async def keep(m: Mutation, asset_id: UUID, credentials: Credentials | None) -> None:
    """Writes the manifest store to a table of its own, so that lists needn't carry it."""
    if credentials and credentials.manifest_store:
        values = {"owner": m.owner, "asset_id": asset_id, "store": credentials.manifest_store}
        await m.run(_INSERT_MANIFEST_STORE, values)
