"""Finds what a new run rests on: its pictures, by view, and its facts, from the request and from a
product of `pipeline`."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from atelier.common.v1 import view_pb2
from atelier.pipeline.v1 import phase_pb2, product_pb2, product_pb2_grpc, review_pb2
from atelier.techfiles.v1 import tech_pack_pb2 as pb

from services.techfiles import origins, rules
from services.techfiles.assets import Assets
from services.techfiles.rules import Revision
from services.techfiles.tech_file_rows import VIEWS
from shared.database.db import Database
from shared.database.rows import Statement
from shared.rpc import auth, errors, protos
from shared.rpc.calls import Peers

_IMAGE_VIEWS = protos.EnumNames(view_pb2.ViewType, "VIEW_TYPE_")
_STATES = protos.EnumNames(product_pb2.ProductState, "PRODUCT_STATE_")


@dataclass(slots=True)
class _NamedFile:
    """A file that may be a revision, with all that decides whether it is one."""

    id: UUID
    product_id: str
    revision_id: str
    file_type: str
    view_type: str
    file_asset_id: UUID | None
    archived_at: datetime | None
    deleted_at: datetime | None


@dataclass(frozen=True)
class PackSource:
    """What a run rests on. `primary`: the asset of the cover."""

    product_id: str
    revisions: Sequence[Revision]
    primary: str
    facts: Mapping[str, Any]
    fact_sources: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pictures(self) -> list[str]:
        return list(dict.fromkeys([*(each.asset_id for each in self.revisions), self.primary]))


_SELECT_NAMED = Statement(
    _NamedFile,
    """
    SELECT id, product_id, revision_id, file_type, view_type, file_asset_id, archived_at,
        deleted_at
    FROM tech_files WHERE id = ANY(%(ids)s)
    """,
)
# The newest live base view of each view, of revisions that are named by their label.
_SELECT_LABELLED = Statement(
    _NamedFile,
    """
    SELECT DISTINCT ON (revision_id, view_type) id, product_id, revision_id, file_type, view_type,
        file_asset_id, archived_at, deleted_at
    FROM tech_files
    WHERE product_id = %(product_id)s AND revision_id = ANY(%(labels)s)
        AND file_type = 'base_view' AND archived_at IS NULL AND deleted_at IS NULL
        AND file_asset_id IS NOT NULL
    ORDER BY revision_id, view_type, number DESC
    """,
)


class PackSources:
    """Makes calls to `pipeline` and `assets` for the current identity."""

    def __init__(self, db: Database, peers: Peers, assets: Assets) -> None:
        self._db = db
        self._products = peers.stub(product_pb2_grpc.ProductServiceStub)
        self._assets = assets

    async def find(self, request: pb.GenerateTechPackRequest) -> PackSource:
        """Returns what the run rests on. What can be refused is refused before a URL is fetched."""
        label = request.product_id or str(UUID(request.source_product_id))
        facts = _stated(request)  # a category that the request adds replaces the product's
        sources: dict[str, Any] = {}
        images: Sequence[product_pb2.ProductImage] = ()
        if request.source_product_id:
            answer = await self._product(request)
            images = answer.product.images
            known, sources = origins.of_product(answer)
            facts, sources = origins.overridden(known, sources, facts, auth.current().actor)
            facts = protos.facts(protos.facts_message(facts), "facts")  # within the limits, too
        if len(facts.get("closeups", ())) > rules.MOST_CLOSEUPS:
            raise errors.invalid("facts.closeups", f"may have {rules.MOST_CLOSEUPS} in one pack")
        named = await self._named(request, label, images)
        _check_views(request, named)
        revisions = [*await self._pictured(request), *named]
        revisions += _of_images(images, {revision.view for revision in revisions})
        if not revisions:
            raise _no_picture(request)
        primary = await self._primary(request, images) or revisions[0].asset_id
        return PackSource(label, revisions, primary, facts, sources)

    async def _product(self, request: pb.GenerateTechPackRequest) -> product_pb2.GetProductResponse:
        asked = product_pb2.GetProductRequest(product_id=request.source_product_id)
        answer: product_pb2.GetProductResponse = await self._products.GetProduct(asked)
        if answer.product.state != product_pb2.PRODUCT_STATE_COMPLETED and not (
            request.allow_unfinished_product
        ):
            raise errors.precondition(
                f"the product is {_STATES.word[answer.product.state].upper()}:"
                f" {_unfinished(answer)}; or send allow_unfinished_product to take what is there",
                subject=f"pipeline/products/{answer.product.id}",
            )
        return answer

    async def _named(
        self,
        request: pb.GenerateTechPackRequest,
        label: str,
        images: Sequence[product_pb2.ProductImage],
    ) -> list[Revision]:
        """Returns the revisions that the request names by their ids alone."""
        if not request.revision_ids:
            return []
        ids = {name: UUID(name) for name in request.revision_ids if _is_id(name)}
        files = {
            file.id: file for file in await self._db.all(_SELECT_NAMED, {"ids": list(ids.values())})
        }
        labelled = await self._db.all(
            _SELECT_LABELLED, {"product_id": label, "labels": list(request.revision_ids)}
        )
        views = {image.asset_id: _view(image) for image in images}
        found: list[Revision] = []
        for number, name in enumerate(request.revision_ids):
            field_path = f"revision_ids[{number}]"
            file = files.get(ids[name]) if name in ids else None
            same = [row for row in labelled if row.revision_id == name]
            if file is not None:
                found.append(_of_file(file, label, field_path))
            elif same:
                found += [_of_file(row, label, field_path) for row in same]
            elif name in ids and str(ids[name]) in views:
                found.append(_of_image(str(ids[name]), views[str(ids[name])], field_path))
            else:
                raise errors.invalid(
                    field_path,
                    f"{name[:64]!r} is no base view of product {label!r}, and no image of"
                    " source_product_id; send the picture in `revisions`, with its view",
                )
        return found

    async def _pictured(self, request: pb.GenerateTechPackRequest) -> list[Revision]:
        """Returns the revisions that the request describes, with pictures at URLs as assets."""
        revisions = []
        for number, revision in enumerate(request.revisions):
            field_path = f"revisions[{number}].image_url"
            asset_id = revision.asset_id or await self._import(
                request, revision.image_url, field_path
            )
            label = revision.revision_id or asset_id
            revisions.append(Revision(label, VIEWS.word[revision.view], asset_id))
        return revisions

    async def _primary(
        self,
        request: pb.GenerateTechPackRequest,
        images: Sequence[product_pb2.ProductImage],
    ) -> str:
        if request.primary_image_url:
            return await self._import(request, request.primary_image_url, "primary_image_url")
        return request.primary_asset_id or next(
            (image.asset_id for image in images if image.primary), ""
        )

    async def _import(self, request: pb.GenerateTechPackRequest, url: str, field_path: str) -> str:
        name = ""
        if request.request_id:  # a repeat finds the asset of the call before
            given = f"{request.request_id}\x1f{field_path}"
            name = f"tech-pack-{hashlib.sha256(given.encode()).hexdigest()}"
        return await self._assets.bring_in(url, field_path, request_id=name)


def _stated(request: pb.GenerateTechPackRequest) -> dict[str, Any]:
    """Returns the request's facts, with its category. Raises INVALID_ARGUMENT if its facts state
    another one."""
    facts = protos.facts(request.facts, "facts")
    category = request.category.strip()
    if category:
        stated = facts.setdefault("product", {}).setdefault("category", category)
        if stated != category:
            raise errors.invalid(
                "category", f"the facts state {stated!r}; say it once, or the same twice"
            )
    return facts


def _check_views(request: pb.GenerateTechPackRequest, named: Sequence[Revision]) -> None:
    taken = {VIEWS.word[revision.view] for revision in request.revisions}
    for revision in named:
        if revision.view in taken:
            raise errors.invalid(
                "revision_ids",
                f"{revision.revision_id[:64]!r} shows the {revision.view}, and another revision"
                " does, too; name one of each view",
            )
        taken.add(revision.view)


def _no_picture(request: pb.GenerateTechPackRequest) -> errors.DomainError:
    if not request.source_product_id:
        return errors.invalid(
            "revisions", "has no picture; send `revisions`, `revision_ids` or source_product_id"
        )
    return errors.precondition(
        "none of the product's images says which view it shows; send `revisions`, each with its"
        " view, or a product whose images have a view_type",
        subject=f"pipeline/products/{request.source_product_id}",
    )


def _of_file(file: _NamedFile, label: str, field_path: str) -> Revision:
    if file.product_id != label:
        raise errors.invalid(
            field_path,
            f"tech file {file.id} belongs to product {file.product_id!r}, and this pack to"
            f" {label!r}; name a base view of this product",
        )
    problems = (
        (file.file_type != "base_view", f"is a {file.file_type}"),
        (file.deleted_at is not None, "is in the trash"),
        (file.archived_at is not None, "is archived"),
        (file.file_asset_id is None, "has no picture"),
    )
    if problem := next((text for wrong, text in problems if wrong), ""):
        raise errors.invalid(
            field_path, f"tech file {file.id} {problem}; name a live base view with a picture"
        )
    return Revision(file.revision_id, file.view_type, str(file.file_asset_id))


def _of_image(asset_id: str, view: str, field_path: str) -> Revision:
    if not view:
        raise errors.invalid(
            field_path,
            f"the product doesn't say which view image {asset_id} shows; send it in `revisions`,"
            " with its view",
        )
    return Revision(asset_id, view, asset_id)


def _of_images(images: Sequence[product_pb2.ProductImage], taken: set[str]) -> list[Revision]:
    """Returns the product's first image of each view that isn't taken."""
    found: list[Revision] = []
    seen = set(taken)
    for image in images:
        view = _view(image)
        if view and view not in seen:
            seen.add(view)
            found.append(Revision(image.asset_id, view, image.asset_id))
    return found


def _view(image: product_pb2.ProductImage) -> str:
    return _IMAGE_VIEWS.word.get(image.view_type, "")


def _is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _unfinished(answer: product_pb2.GetProductResponse) -> str:
    """Returns what keeps a product from being COMPLETED, and the call that helps."""
    product = answer.product
    match product.state:
        case product_pb2.PRODUCT_STATE_AWAITING_REVIEW:
            opened = [r for r in answer.reviews if r.state == review_pb2.REVIEW_STATE_OPEN]
            which = f" {opened[0].id} of phase {opened[0].phase}" if opened else ""
            return (
                f"review{which} waits for a person; decide it with pipeline"
                " ReviewService.SubmitReview"
            )
        case product_pb2.PRODUCT_STATE_ERROR | product_pb2.PRODUCT_STATE_STOPPED:
            reason = product.error_message or "a phase was stopped"
            return f"{reason}; go on with pipeline PhaseService.RetryPhase"
    for phase in product.phases:
        if (
            phase.state == phase_pb2.PHASE_STATE_PENDING
            and not phase.due
            and not (product.is_pipeline_running)
        ):
            if product.state == product_pb2.PRODUCT_STATE_UPLOADED:
                break
            return f"phase {phase.number} was not started; call pipeline PhaseService.StartPhase"
    return "its phases are under way; wait with pipeline ProductService.WatchProduct"
