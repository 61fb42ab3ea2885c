"""VariantService: reads variants, has them made on demand, and makes them again."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from atelier.assets.v1 import asset_pb2, variant_pb2_grpc
from atelier.assets.v1 import variant_pb2 as pb

from services.assets.core import asset_rows, rules
from services.assets.core.asset_rows import SELECT_ASSET, VARIANTS, Asset, Urls, Variant
from services.assets.variants import rendition_rows
from services.assets.variants.presets import Presets
from services.assets.variants.rendition_rows import UNDECODABLE
from shared.background import jobs, waiting
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.rows import Statement
from shared.rpc import auth, errors
from shared.rpc.server import Context

_PRIORITY_FOR_OTHERS = (jobs.FRESH + jobs.BACKFILL) // 2
# Renditions of one owner's images that others may wait for: it keeps them from flooding the owner.
_MOST_FOR_OTHERS = 20
_LONGEST_WAIT_SECONDS = 20.0


@dataclass(slots=True)
class VariantOfAsset(Variant):
    """A variant, with the time at which its asset was deleted."""

    deleted_at: datetime | None


_SELECT_VARIANTS = Statement(
    VariantOfAsset,
    f"""
    SELECT {VARIANTS.of("v")}, a.deleted_at FROM variants v JOIN assets a ON a.id = v.asset_id
    WHERE v.asset_id = %(id)s ORDER BY v.preset
    """,
)
_SELECT_VARIANT = Statement(
    VariantOfAsset,
    f"""
    SELECT {VARIANTS.of("v")}, a.deleted_at FROM variants v JOIN assets a ON a.id = v.asset_id
    WHERE v.asset_id = %(id)s AND v.preset = %(preset)s
    """,
)
_SELECT_CURABLE = Statement(
    str,
    """
    SELECT preset FROM variants
    WHERE asset_id = %(id)s AND preset = ANY(%(presets)s) AND state = 'failed'
        AND NOT error_class = ANY(%(final)s)
    """,
)
_SELECT_ASSET_ID = Statement(UUID, "SELECT id FROM assets WHERE id = %(id)s")
_COUNT_FOR_OTHERS = Statement(
    int,
    """
    SELECT count(*) FROM renditions
    WHERE owner = %(owner)s AND for_others AND state IN ('pending', 'running')
    """,
)


def _refuse_unless_image(asset: Asset) -> None:
    problem = asset_rows.unusable(asset) or (
        "a PDF has no variants" if asset.mime_type == rules.PDF else ""
    )
    if problem:
        raise errors.precondition(
            f"{problem}; variants are made of READY images", subject=f"assets/{asset.id}"
        )


class OnDemand:
    """Makes variants on demand."""

    def __init__(self, db: Database, queue: jobs.JobQueue, presets: Presets) -> None:
        self._db = db
        self._queue = queue
        self._presets = presets

    async def get(self, asset_id: UUID, preset: str, field: str) -> VariantOfAsset:
        """Returns the variant's row, with `deleted_at` of its asset. If there is none, writes one,
        and its job.

        Raises NOT_FOUND, INVALID_ARGUMENT on `field`, FAILED_PRECONDITION and OVERLOADED as
        GetVariant says.
        """
        row = await self._db.first(_SELECT_VARIANT, {"id": asset_id, "preset": preset})
        if row is None:
            asset = await self._db.first(SELECT_ASSET, {"id": asset_id})
            if asset is None:
                raise errors.not_found("asset", asset_id)
            self._presets.check({field: preset})
            await self._start(asset, preset)
            row = await self._db.first(_SELECT_VARIANT, {"id": asset_id, "preset": preset})
        if row is None:
            raise errors.not_found("asset", asset_id)  # purged meanwhile
        return row

    async def finished(
        self, asset_id: UUID, preset: str, field: str, seconds: float
    ) -> VariantOfAsset:
        """Returns the row once it is READY or FAILED, or as it is after `seconds`."""

        async def read() -> VariantOfAsset:
            return await self.get(asset_id, preset, field)

        return await waiting.until_seen(read, lambda row: row.state in ("ready", "failed"), seconds)

    async def ready(self, asset_id: UUID, preset: str, seconds: float | None) -> Variant:
        """Returns the row of the READY variant, for a download. Raises FAILED_PRECONDITION, with
        RetryInfo if the variant is still being made after nine tenths of `seconds`, at most 20."""
        wait = (
            _LONGEST_WAIT_SECONDS if seconds is None else min(0.9 * seconds, _LONGEST_WAIT_SECONDS)
        )
        row = await self.finished(asset_id, preset, "variant", wait)
        subject = f"assets/{asset_id}/variants/{preset}"
        if row.state == "failed":
            text = f"it can't be made ({row.error_class}): {row.error_message}"
            raise errors.precondition(text, subject=subject)
        if row.state != "ready":
            raise errors.precondition(
                "it is being made; try again in a moment", subject=subject, retry_seconds=2
            )
        return row

    async def _start(self, asset: Asset, preset: str) -> None:
        """Starts the variant in the tenant context of the asset's owner: anybody may have a variant
        of a public asset made, once and for all."""
        caller = auth.current()
        for_others = asset.owner != caller.owner
        async with self._db.transaction(asset.owner, caller.actor) as m:
            locked = await asset_rows.lock(m, asset.id)
            if for_others and not locked.public:
                raise errors.not_found("asset", asset.id)
            _refuse_unless_image(locked)
            if for_others:
                await _refuse_beyond_limit(m)
            priority = _PRIORITY_FOR_OTHERS if for_others else jobs.FRESH
            await rendition_rows.ask(
                m, self._queue, locked, [preset], priority=priority, again=(), for_others=for_others
            )


async def _refuse_beyond_limit(m: Mutation) -> None:
    """Raises OVERLOADED if others already wait for 20 renditions of the owner's images."""
    if await m.one(_COUNT_FOR_OTHERS, {"owner": m.owner}) >= _MOST_FOR_OTHERS:
        text = (
            "others wait for many variants of this owner right now; nothing was started, try again"
        )
        raise errors.retry_later(errors.Reason.ERROR_REASON_OVERLOADED, text, 2)


class VariantService(variant_pb2_grpc.VariantServiceServicer):
    def __init__(
        self,
        db: Database,
        queue: jobs.JobQueue,
        urls: Urls,
        presets: Presets,
        on_demand: OnDemand,
    ) -> None:
        self._db = db
        self._queue = queue
        self._urls = urls
        self._presets = presets
        self._on_demand = on_demand

    async def GetVariant(
        self, request: pb.GetVariantRequest, context: Context
    ) -> pb.GetVariantResponse:
        asset_id = parse_id(request.asset_id, "asset_id")
        if request.wait:
            row = await self._on_demand.finished(
                asset_id, request.preset, "preset", waiting.patience()
            )
        else:
            row = await self._on_demand.get(asset_id, request.preset, "preset")
        shown = self._shown(row, request.include_urls)
        if shown.url:
            self._urls.meter.issued(row.owner, "", row.size_bytes)
        return pb.GetVariantResponse(variant=shown)

    async def ListVariants(
        self, request: pb.ListVariantsRequest, context: Context
    ) -> pb.ListVariantsResponse:
        asset_id = parse_id(request.asset_id, "asset_id")
        rows = await self._db.all(_SELECT_VARIANTS, {"id": asset_id})
        if not rows and await self._db.first(_SELECT_ASSET_ID, {"id": asset_id}) is None:
            raise errors.not_found("asset", asset_id)
        shown = [self._shown(row, request.include_urls) for row in rows]
        if fetched := [variant.size_bytes for variant in shown if variant.url]:
            # A page shows one of them.
            self._urls.meter.issued(rows[0].owner, "", max(fetched))
        return pb.ListVariantsResponse(variants=shown)

    def _shown(self, row: VariantOfAsset, include_urls: bool) -> asset_pb2.Variant:
        return asset_rows.variant_to_proto(
            row, self._urls if include_urls and not row.deleted_at else None
        )

    async def RegenerateVariants(
        self, request: pb.RegenerateVariantsRequest, context: Context
    ) -> pb.RegenerateVariantsResponse:
        asset_id = parse_id(request.asset_id, "asset_id")
        self._presets.check(
            {f"presets[{index}]": name for index, name in enumerate(request.presets)}
        )

        async def work(m: Mutation) -> pb.RegenerateVariantsResponse:
            asset = await asset_rows.lock(m, asset_id)
            _refuse_unless_image(asset)
            presets = request.presets or list(self._presets.by_name)
            if request.only_failed:
                presets = await m.all(
                    _SELECT_CURABLE,
                    {"id": asset_id, "presets": list(presets), "final": list(UNDECODABLE)},
                )
            rows = await rendition_rows.ask(m, self._queue, asset, presets, priority=jobs.FRESH)
            return pb.RegenerateVariantsResponse(
                variants=[asset_rows.variant_to_proto(row) for row in rows]
            )

        return await self._db.mutate(request, pb.RegenerateVariantsResponse, work)
