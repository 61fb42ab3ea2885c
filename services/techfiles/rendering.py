"""Renders exports: a collection's pack as a PDF, or a ZIP of that PDF and all files, stored under
this service's own prefix."""

import asyncio
import hashlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from atelier.assets.v1 import asset_pb2, variant_pb2, variant_pb2_grpc

from services.techfiles import (
    archive,
    contents,
    document,
    gathering,
    printing,
    rules,
    tech_file_rows,
)
from services.techfiles.assets import Assets
from services.techfiles.collection_rows import CollectedFile
from services.techfiles.export_rows import CONTENT_TYPES, Export, NewExport, StoredDocument
from services.techfiles.gathering import Gathered
from shared import imaging
from shared.background import attempts, tasks
from shared.database.db import Database
from shared.imaging import ImageRejected, ImagingPool, Preset
from shared.rpc import auth, errors
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError
from shared.storage import Storage

_MOST_WARNINGS = 100
_RENDER_SECONDS = 300.0  # facts at all their limits take some ten on an idle machine
_JPEG_QUALITY = 88
_ZIP_QUALITY = 92
_PICTURES_AT_ONCE = 4
_FOLDERS: Mapping[str, archive.Section] = {
    "category": "01-cover",
    "base_view": "02-base-views",
    "sketch": "03-sketches",
    "closeup": "04-closeups",
    "complete_pack": "07-documents",
}


class Renderer:
    """Makes and stores the documents of exports."""

    def __init__(
        self,
        db: Database,
        storage: Storage,
        peers: Peers,
        pool: ImagingPool,
        fonts: Sequence[Path] = (),
    ) -> None:
        self._fonts = fonts
        self._db = db
        self._storage = storage
        self._peers = peers
        self._assets = Assets(peers)
        self._pool = pool

    async def delete(self, stored: StoredDocument) -> None:
        """Deletes a document that no row will ever show."""
        await self._storage.delete([stored.storage_key])

    async def render(self, export: Export | NewExport, unique: UUID) -> StoredDocument:
        """Makes and stores the document. `unique` keeps attempts apart. Raises JobFailed, and
        errors that `attempts.verdict` classifies."""
        directory = Path(tempfile.mkdtemp(prefix="atelier-"))
        try:
            return await self._render(export, unique, directory)
        except ImageRejected as refusal:  # by the renderer: the pictures were checked one by one
            raise attempts.JobFailed(
                "TOO_EXPENSIVE",
                "the document takes too much memory or time; export it again with shorter `facts`,"
                " or with fewer files in the collection",
            ) from refusal
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    async def _render(
        self, export: Export | NewExport, unique: UUID, directory: Path
    ) -> StoredDocument:
        gathered = await gathering.gather(self._db, export)
        wanted = contents.pictures_of(gathered.files)
        known = await self._assets.describe(wanted)
        if gathered.release:
            _refuse_gone(wanted, known)
        made = await asyncio.to_thread(gathered.contents, known)
        pdf = directory / "pack.pdf"
        pictures = [
            picture for picture, asset in known.items() if asset.mime_type.startswith("image/")
        ]
        warnings = [f"picture: asset {gone} is gone" for gone in wanted if gone not in known]
        warnings += made.warnings
        # A release is printed from the originals: whether a variant exists may change its bytes.
        preset = "" if gathered.release else "large"
        warnings += await self._print(made.pack, pictures, directory, pdf, preset)
        source: Path | AsyncIterator[bytes] = pdf
        if export.format == "zip":
            side = export.picture_pixels
            smaller = await self._recompressed(known, side, directory, warnings)
            source = _Zip(self._peers, directory, gathered, smaller).chunks(known, pdf)
        return await self._store(export, unique, source, directory, warnings)

    async def _recompressed(
        self,
        known: Mapping[str, asset_pb2.Asset],
        side: int,
        directory: Path,
        warnings: list[str],
    ) -> dict[str, Path]:
        """Returns the pictures that are larger than `side` pixels, compressed again, by asset; none
        if it is 0. A picture that can't be decoded stays as it is, with a warning."""
        made: dict[str, Path] = {}
        for asset_id, asset in known.items():
            if not side or max(asset.width, asset.height) <= side:
                continue
            source = directory / f"{asset_id}.source"
            await self._peers.download(asset_id, source)
            kind: Literal["png", "jpeg"] = "png" if asset.mime_type == "image/png" else "jpeg"
            wanted = Preset(f"{asset_id}.smaller", side, side, kind, quality=_ZIP_QUALITY)
            try:
                [variant] = await self._pool.run(
                    imaging.make_variants, source, [wanted], directory, asset.digital_source_type
                )
                made[asset_id] = variant.path
            except ImageRejected as refusal:
                warnings.append(f"picture: {asset_id} stays as large as it is: {refusal.message}")
            source.unlink()
        return made

    async def _store(
        self,
        export: Export | NewExport,
        unique: UUID,
        source: Path | AsyncIterator[bytes],
        directory: Path,
        warnings: Sequence[str],
    ) -> StoredDocument:
        key = rules.object_key(
            export.owner, str(export.collection_id), str(export.id), str(unique), export.format
        )
        try:
            stat = await self._storage.put(key, source, content_type=CONTENT_TYPES[export.format])
            sha256 = (
                stat.sha256 or (await self._storage.fetch(key, directory / "stored")).sha256 or ""
            )
        except BaseException:  # also when cancelled: no row will ever show it
            await asyncio.shield(self._storage.delete([key]))
            raise
        return StoredDocument(key, stat.size, sha256, list(warnings[:_MOST_WARNINGS]))

    async def _print(
        self,
        pack: document.Pack,
        wanted: Sequence[str],
        directory: Path,
        target: Path,
        preset: str,
    ) -> list[str]:
        side = rules.page_side(len(wanted))
        turns = asyncio.Semaphore(_PICTURES_AT_ONCE)
        pictures: dict[str, Path] = {}
        warnings = []

        async def prepare(asset_id: str) -> None:
            try:
                async with turns:
                    pictures[asset_id] = await self._page_picture(asset_id, directory, side, preset)
            except ImageRejected as refusal:
                warnings.append(f"picture: {asset_id}: {refusal.message}")
            except DomainError as refusal:
                if errors.passing(refusal):
                    raise
                warnings.append(f"picture: {asset_id}: {refusal.text}")

        await tasks.all_of([prepare(asset_id) for asset_id in wanted])
        found = await self._pool.run(
            printing.render_pdf, pack, pictures, target, self._fonts, timeout=_RENDER_SECONDS
        )
        return sorted(warnings) + [f"{warning.reason}: {warning.detail}" for warning in found]

    async def _page_picture(self, asset_id: str, directory: Path, side: int, preset: str) -> Path:
        """Makes a JPEG of at most `side` pixels, which the document embeds as it is. Takes the
        variant `preset` if it exists, since originals are large. A variant that doesn't exist
        would have to be made first, from the same original."""
        source = directory / f"{asset_id}.source"
        stub = self._peers.stub(variant_pb2_grpc.VariantServiceStub)
        request = variant_pb2.ListVariantsRequest(asset_id=asset_id)
        answer: variant_pb2.ListVariantsResponse = await stub.ListVariants(request)
        ready = {
            variant.preset
            for variant in answer.variants
            if variant.state == asset_pb2.VARIANT_STATE_READY
        }
        await self._peers.download(asset_id, source, preset if preset in ready else "")
        wanted = Preset(asset_id, side, side, "jpeg", quality=_JPEG_QUALITY)
        [made] = await self._pool.run(imaging.make_variants, source, [wanted], directory)
        source.unlink()
        return made.path


def _refuse_gone(wanted: Sequence[str], known: Mapping[str, asset_pb2.Asset]) -> None:
    """Raises JobFailed if a picture that a release froze is gone: its document would say less."""
    gone = [each for each in wanted if each not in known or known[each].HasField("bytes_gone_time")]
    if gone:
        raise attempts.JobFailed(
            "PICTURE_GONE",
            f"the picture {gone[0]}, which the release holds, was purged by force; make another"
            " release (CreateRelease)",
        )


class _Zip:
    """The archive of one export, in chunks. At most one picture at a time is on this disk, none in
    memory."""

    def __init__(
        self, peers: Peers, directory: Path, gathered: Gathered, smaller: Mapping[str, Path]
    ) -> None:
        self._smaller = smaller  # by asset: what takes the place of the original
        self._peers = peers
        self._directory = directory
        self._gathered = gathered
        self._loop = asyncio.get_running_loop()

    async def chunks(self, known: Mapping[str, asset_pb2.Asset], pdf: Path) -> AsyncIterator[bytes]:
        collection, release = self._gathered.collection, self._gathered.release
        manifest = {
            "collection": collection.name,
            "collection_id": str(collection.id),
            "product_id": collection.product_id,
            "as_of": self._gathered.as_of.isoformat(),
            **({"release": asdict(release)} if release else {}),
            **({"compressed_again": sorted(self._smaller)} if self._smaller else {}),
            "tech_files": [_listed(row) for row in self._gathered.files],
        }
        stream = archive.stream_zip(self._members(known, pdf), manifest, self._gathered.as_of)
        # The generator runs in a thread, because it blocks on disk and on downloads, which run in
        # this loop.
        while (chunk := await asyncio.to_thread(next, stream, None)) is not None:
            yield chunk

    def _members(self, known: Mapping[str, asset_pb2.Asset], pdf: Path) -> list[archive.Member]:
        gathered = self._gathered
        members = [_stored("07-documents", f"{gathered.collection.name}.pdf", pdf)]
        members.append(_written("07-documents", "facts.json", gathered.facts))
        if gathered.sources:
            members.append(_written("07-documents", "fact-sources.json", gathered.sources))
        for row in gathered.files:
            name = (
                " ".join(part for part in (row.view_type, row.file_category) if part)
                or row.file_type
            )
            asset = known.get(str(row.file_asset_id))
            if asset and asset.id in self._smaller:
                smaller = self._smaller[asset.id]
                folder = _FOLDERS[row.file_type]
                members.append(_stored(folder, f"{name}{smaller.suffix}", smaller))
            elif asset:
                suffix = asset.mime_type.rpartition("/")[2].replace("jpeg", "jpg")
                path = archive.member_path(_FOLDERS[row.file_type], f"{name}.{suffix}")
                members.append(
                    archive.Member(path, self._downloaded(asset.id), asset.size_bytes, asset.sha256)
                )
            if row.analysis is not None:
                members.append(
                    _written(_FOLDERS[row.file_type], f"{name}.analysis.json", row.analysis)
                )
        return members

    def _downloaded(self, asset_id: str) -> Callable[[], Iterator[bytes]]:
        identity = auth.current()

        def read() -> Iterator[bytes]:
            path = self._directory / f"{asset_id}.original"

            async def download() -> None:
                auth.enter(identity)
                await self._peers.download(asset_id, path)

            asyncio.run_coroutine_threadsafe(download(), self._loop).result()
            try:
                yield from _chunks(path)
            finally:
                path.unlink()

        return read


def _listed(row: CollectedFile) -> dict[str, Any]:
    file = tech_file_rows.to_proto(row)
    return {
        "id": file.id,
        "type": row.file_type,
        "view": row.view_type,
        "category": row.file_category,
        "version_number": file.version_number,
        "asset_id": file.file_asset_id,
        "model": row.model,
        "credits_used": row.credits_used,
        "section": row.section,
    }


def _written(section: archive.Section, name: str, value: Mapping[str, Any]) -> archive.Member:
    data = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True).encode() + b"\n"
    path = archive.member_path(section, name)
    return archive.Member(path, lambda: [data], len(data), hashlib.sha256(data).hexdigest())


def _stored(section: archive.Section, name: str, path: Path) -> archive.Member:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return archive.Member(
        archive.member_path(section, name), lambda: _chunks(path), path.stat().st_size, digest
    )


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(256 * 1024):
            yield chunk
