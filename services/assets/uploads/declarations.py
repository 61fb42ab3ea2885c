"""What a caller says about a file before its bytes are there, checked and turned into the columns
of an asset.

However the bytes come (a form, a stream, parts, a URL), the rules about kind, type, size and labels
are these.
"""

from collections.abc import Mapping
from typing import Any

from atelier.assets.v1 import asset_pb2
from atelier.assets.v1 import upload_pb2 as pb
from psycopg.types.json import Jsonb

from services.assets.accounting.quotas import SET, Quotas
from services.assets.core import asset_rows, rules
from shared.database.db import Mutation
from shared.imaging import Limits
from shared.imaging.media_types import canonical
from shared.rpc import auth, errors
from shared.rpc.errors import DomainError, Reason
from shared.rpc.protos import metadata

_INSERT_ASSET = f"""
    INSERT INTO assets (id, owner, created_by, kind, public, free, file_name, size_bytes,
        mime_type, tags, metadata,
                        session_id, room_id, product_id, dataset_id, provenance)
    VALUES (%(id)s, %(owner)s, %(actor)s, %(kind)s, %(public)s, %(free)s, %(file_name)s,
        %(size_bytes)s,
            %(mime_type)s, %(tags)s, %(metadata)s, %(session_id)s, %(room_id)s, %(product_id)s,
                %(dataset_id)s,
            %(provenance)s)
    RETURNING *, {SET} AS quota_set
"""


def columns(declaration: pb.UploadDeclaration, path: str, limits: Limits) -> dict[str, Any]:
    """Checks what protovalidate can't, and turns the declaration into the asset's columns. `path`:
    of its fields."""
    made = described(declaration, path)
    kind, mime_type = made["kind"], canonical(declaration.mime_type)
    if problem := rules.type_problem(kind, mime_type):
        raise errors.invalid(f"{path}mime_type", problem)
    limit = limits.pdf_bytes if mime_type == rules.PDF else limits.image_bytes
    if declaration.size_bytes > limit:
        raise errors.invalid(
            f"{path}size_bytes",
            f"{declaration.size_bytes} bytes is over the limit of {limit} for this type; make it"
            " smaller",
        )
    provenance = declaration.provenance
    made_by: dict[str, Any] = {
        "model": provenance.model,
        "model_version": provenance.model_version,
        "prompt": provenance.prompt,
        "source_asset_ids": list(provenance.source_asset_ids),
        "digital_source_type": provenance.digital_source_type,
    }
    if wrong := rules.provenance_problem(
        kind, made_by if declaration.HasField("provenance") else None
    ):
        raise errors.invalid(f"{path}{wrong[0]}", wrong[1])
    return {
        **made,
        "size_bytes": declaration.size_bytes,
        "mime_type": mime_type,
        "provenance": Jsonb(made_by) if declaration.HasField("provenance") else None,
    }


def described(declaration: Any, path: str) -> dict[str, Any]:
    """The columns that don't depend on the bytes; size and type are still unknown.
    PERMISSION_DENIED: not this kind."""
    identity = auth.current()
    kind = asset_rows.KINDS.word[declaration.kind]
    if not rules.may_upload(kind, identity.role, identity.service is not None):
        text = f"a {identity.role} may not upload files of kind {kind}; {rules.who_uploads(kind)}"
        raise DomainError(
            Reason.ERROR_REASON_ROLE_NOT_ALLOWED, text, {"role": identity.role, "kind": kind}
        )
    public = declaration.visibility == asset_pb2.VISIBILITY_PUBLIC or (
        not declaration.visibility and kind in rules.PUBLIC_KINDS
    )
    return {
        "kind": kind,
        "public": public,
        "free": declaration.free if declaration.HasField("free") else True,
        "file_name": asset_rows.checked_name(declaration.file_name, f"{path}file_name"),
        "size_bytes": 0,
        "mime_type": "",
        "tags": list(declaration.tags),
        "metadata": Jsonb(metadata(declaration.metadata, f"{path}metadata")),
        "provenance": None,
        **{name: getattr(declaration.scope, name) for name in asset_rows.SCOPES},
    }


async def announce(
    m: Mutation, quota: Quotas, asset_id: Any, made: Mapping[str, Any]
) -> asset_pb2.Asset:
    """Writes the PENDING asset, if it fits, and tells of it. Returns it. One in a transaction."""
    row = await m.one(_INSERT_ASSET, {**made, "id": asset_id, "owner": m.owner, "actor": m.actor})
    await quota.announce(m, made["size_bytes"], set_for_it=row.quota_set)
    return await asset_rows.publish(m, row)


def upload_key(owner: str, made: Mapping[str, Any], asset_id: Any, upload_id: Any) -> str:
    """Where the upload is to be sent: it follows from the ids, so that a repeat is given the same
    place."""
    scope = {name: made[name] for name in asset_rows.SCOPES}
    return rules.object_key(
        owner, scope, str(asset_id), str(upload_id), folder="upload", public=False
    )
