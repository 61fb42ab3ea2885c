"""Checks what a caller declares about a file before its bytes arrive, and turns it into the columns
of an asset.

The rules about kind, type, size and labels are the same for every way of upload: a form, a stream,
parts, a URL.
"""

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from atelier.assets.v1 import asset_pb2
from atelier.assets.v1.import_pb2 import ImportAssetRequest
from atelier.assets.v1.upload_pb2 import UploadDeclaration
from psycopg.types.json import Jsonb

from services.assets.accounting.enforcing import SET, Quotas
from services.assets.core import asset_rows, rules
from services.assets.core.asset_rows import ASSETS, KINDS, Asset, scope_of
from shared.database.db import Mutation
from shared.database.rows import Statement
from shared.imaging import Limits
from shared.imaging.media_types import canonical
from shared.rpc import auth, errors
from shared.rpc.errors import DomainError, Reason
from shared.rpc.protos import metadata


@dataclass(frozen=True, slots=True)
class Declared:
    """The columns of an asset whose bytes haven't arrived. Size 0 and type '' mean unknown."""

    kind: str
    public: bool
    free: bool
    file_name: str
    tags: list[str]
    metadata: dict[str, Any]
    session_id: str
    room_id: str
    product_id: str
    dataset_id: str
    size_bytes: int = 0
    mime_type: str = ""
    provenance: dict[str, object] | None = None


@dataclass(slots=True)
class _Announced(Asset):
    """A new asset, and whether a quota was set for its owner or the deployment."""

    quota_set: bool


_INSERT_ASSET = Statement(
    _Announced,
    f"""
    INSERT INTO assets (id, owner, created_by, kind, public, free, file_name, size_bytes,
        mime_type, tags, metadata, session_id, room_id, product_id, dataset_id, provenance)
    VALUES (%(id)s, %(owner)s, %(actor)s, %(kind)s, %(public)s, %(free)s, %(file_name)s,
        %(size_bytes)s, %(mime_type)s, %(tags)s, %(metadata)s, %(session_id)s, %(room_id)s,
        %(product_id)s, %(dataset_id)s, %(provenance)s)
    RETURNING {ASSETS.columns}, {SET} AS quota_set
    """,
)


def declared(
    declaration: UploadDeclaration, path: str, limits: Limits, public_kinds: Container[str]
) -> Declared:
    """Checks what protovalidate can't, and returns the declaration as an asset's columns. Raises
    INVALID_ARGUMENT or PERMISSION_DENIED. `path`: the prefix of its fields in errors."""
    made = described(declaration, path, public_kinds)
    mime_type = canonical(declaration.mime_type)
    if problem := rules.type_problem(made.kind, mime_type):
        raise errors.invalid(f"{path}mime_type", problem)
    limit = limits.pdf_bytes if mime_type == rules.PDF else limits.image_bytes
    if declaration.size_bytes > limit:
        raise errors.invalid(
            f"{path}size_bytes",
            f"{declaration.size_bytes} bytes is over the limit of {limit} for this type; make it"
            " smaller",
        )
    provenance = _provenance(declaration.provenance) if declaration.HasField("provenance") else None
    if wrong := rules.provenance_problem(made.kind, provenance):
        raise errors.invalid(f"{path}{wrong[0]}", wrong[1])
    return replace(
        made, size_bytes=declaration.size_bytes, mime_type=mime_type, provenance=provenance
    )


def _provenance(said: asset_pb2.Provenance) -> dict[str, object]:
    return {
        "model": said.model,
        "model_version": said.model_version,
        "prompt": said.prompt,
        "source_asset_ids": list(said.source_asset_ids),
        "digital_source_type": said.digital_source_type,
    }


def described(
    declaration: UploadDeclaration | ImportAssetRequest, path: str, public_kinds: Container[str]
) -> Declared:
    """Returns the columns that don't depend on the bytes. A file of `public_kinds` is public unless
    the declaration says otherwise. Raises PERMISSION_DENIED if the caller may not upload the
    kind."""
    identity = auth.current()
    kind = KINDS.word[declaration.kind]
    if not rules.may_upload(kind, identity.role, identity.service is not None):
        text = f"a {identity.role} may not upload files of kind {kind}; {rules.who_uploads(kind)}"
        raise DomainError(
            Reason.ERROR_REASON_ROLE_NOT_ALLOWED, text, {"role": identity.role, "kind": kind}
        )
    public = declaration.visibility == asset_pb2.VISIBILITY_PUBLIC or (
        not declaration.visibility and kind in public_kinds
    )
    return Declared(
        kind=kind,
        public=public,
        free=declaration.free if declaration.HasField("free") else True,
        file_name=asset_rows.checked_name(declaration.file_name, f"{path}file_name"),
        tags=list(declaration.tags),
        metadata=metadata(declaration.metadata, f"{path}metadata"),
        session_id=declaration.scope.session_id,
        room_id=declaration.scope.room_id,
        product_id=declaration.scope.product_id,
        dataset_id=declaration.scope.dataset_id,
    )


async def announce(m: Mutation, quotas: Quotas, asset_id: UUID, made: Declared) -> asset_pb2.Asset:
    """Writes the PENDING asset, if it fits into the quotas, and publishes it. Returns its message.
    A transaction calls it at most once."""
    row = await m.one(
        _INSERT_ASSET,
        {
            "id": asset_id,
            "owner": m.owner,
            "actor": m.actor,
            "kind": made.kind,
            "public": made.public,
            "free": made.free,
            "file_name": made.file_name,
            "size_bytes": made.size_bytes,
            "mime_type": made.mime_type,
            "tags": made.tags,
            "metadata": Jsonb(made.metadata),
            "provenance": Jsonb(made.provenance) if made.provenance is not None else None,
            **scope_of(made),
        },
    )
    await quotas.announce(m, made.size_bytes, set_for_it=row.quota_set)
    return await asset_rows.publish(m, row)


def upload_key(owner: str, made: Declared, asset_id: UUID | str, upload_id: UUID | str) -> str:
    """Returns the key that the upload is sent to. It follows from the ids, so that a repeat gets
    the same key."""
    return rules.object_key(
        owner, scope_of(made), str(asset_id), str(upload_id), folder="upload", public=False
    )
