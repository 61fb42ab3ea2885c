"""Receives the images of a product in a stream, and passes their bytes on to `assets` as they come:
a chunk or two of them are in memory."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from atelier.assets.v1 import asset_pb2, upload_pb2, upload_pb2_grpc
from atelier.pipeline.v1 import product_pb2 as pb
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from services.pipeline.drafting import Draft
from shared.database.db import Database
from shared.rpc import errors
from shared.rpc.calls import TRANSFER_SECONDS, Peers
from shared.rpc.errors import DomainError, Reason
from shared.rpc.views import VIEWS

MOST_IMAGES = 16
_CHUNKS = 2  # that wait to be passed on
Parts = AsyncIterator[pb.UploadProductRequest]


@dataclass
class UploadedProduct:
    """What a stream says, as the request that a repeat is compared with: the heads, and the digests
    of the bytes."""

    head: pb.UploadProductHead
    request_id: str
    images: list[tuple[pb.UploadImageHead, str]] = field(default_factory=list)

    @property
    def DESCRIPTOR(self) -> Any:
        return pb.UploadProductRequest.DESCRIPTOR

    def SerializeToString(self, *, deterministic: bool = False) -> bytes:
        parts: list[tuple[Message, str]] = [(self.head, ""), *self.images]
        return b"".join(
            len(data).to_bytes(8, "big") + data + digest.encode()
            for message, digest in parts
            for data in [message.SerializeToString(deterministic=True)]
        )


class Taker(Protocol):
    """Takes the bytes of one image."""

    async def take(self, chunk: bytes) -> None: ...
    async def end(self) -> str:
        """Returns the asset id once all bytes are there; empty if none was made."""
        ...

    async def abort(self) -> None: ...


Opener = Callable[[int, pb.UploadImageHead], Taker]


async def head(parts: Parts) -> pb.UploadProductHead:
    async for part in parts:
        if part.WhichOneof("part") == "head":
            return part.head
        break
    raise errors.invalid("head", "must be the first message of the stream")


async def is_repeat(db: Database, uploaded: UploadedProduct) -> bool:
    """Returns whether a stream with this request_id was answered before, whatever it said."""
    try:
        return await db.stored_answer(uploaded, pb.UploadProductResponse) is not None
    except DomainError as error:
        if error.reason != Reason.ERROR_REASON_REQUEST_ID_REUSED:
            raise
        return True


async def receive(parts: Parts, uploaded: UploadedProduct, open_image: Opener) -> list[pb.NewImage]:
    """Reads the stream after its head to the end, and notes in `uploaded` what came. Returns the
    images with their assets."""
    images: list[pb.NewImage] = []
    current: _Image | None = None
    try:
        async for part in parts:
            match part.WhichOneof("part"):
                case "chunk":
                    if current is None:
                        text = "comes before the head of an image; send `image` first"
                        raise errors.invalid("chunk", text)
                    await current.take(part.chunk)
                case "image":
                    if current:
                        images.append(await current.end(uploaded))
                    current = None
                    _check_next(part.image, images)
                    number = len(images) + 1
                    current = _Image(number, part.image, open_image(number, part.image))
                case _:
                    raise errors.invalid("head", "must be sent only once, first")
        if current is None:
            raise errors.invalid("image", "a product has 1 to 16 images; none was sent")
        images.append(await current.end(uploaded))
        current = None
    finally:
        if current:
            await current.taker.abort()
    return images


def _check_next(image: pb.UploadImageHead, before: list[pb.NewImage]) -> None:
    if len(before) == MOST_IMAGES:
        raise errors.invalid("image", f"a product has at most {MOST_IMAGES} images")
    if image.primary and any(each.primary for each in before):
        raise errors.invalid("image.primary", "at most one image can be primary")


class _Image:
    """An image whose bytes are coming."""

    def __init__(self, number: int, head: pb.UploadImageHead, taker: Taker) -> None:
        self.taker = taker
        self._number = number
        self._head = head
        self._size = 0
        self._digest = hashlib.sha256()

    async def take(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > self._head.size_bytes:
            said = f"the {self._head.size_bytes} bytes that its head says"
            raise errors.invalid("chunk", f"image {self._number} has more than {said}")
        self._digest.update(chunk)
        await self.taker.take(chunk)

    async def end(self, uploaded: UploadedProduct) -> pb.NewImage:
        if not self._size:
            text = f"no bytes came after the head of image {self._number}; send them in chunks"
            raise errors.invalid("chunk", text)
        uploaded.images.append((self._head, self._digest.hexdigest()))
        return pb.NewImage(
            asset_id=await self.taker.end(),
            view=VIEWS.word.get(self._head.view_type, ""),
            primary=self._head.primary,
        )


class Ignored:
    """Takes the bytes of a repeat, whose product is there already."""

    def __init__(self, number: int, head: pb.UploadImageHead) -> None:
        pass

    async def take(self, chunk: bytes) -> None:
        pass

    async def end(self) -> str:
        return ""

    async def abort(self) -> None:
        pass


class PassedOn:
    """Passes the bytes of one image on to `assets`."""

    def __init__(self, peers: Peers, draft: Draft, number: int, head: pb.UploadImageHead) -> None:
        self._named = f"image {number} ({head.file_name[:100]})"
        self._number = number
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(_CHUNKS)
        declaration = upload_pb2.UploadDeclaration(
            kind=asset_pb2.ASSET_KIND_PRODUCT,
            file_name=head.file_name,
            mime_type=head.mime_type,
            size_bytes=head.size_bytes,
            sha256=head.sha256,
            scope=asset_pb2.AssetScope(product_id=str(draft.id)),
        )
        self._stub: Any = peers.stub(upload_pb2_grpc.UploadServiceStub)  # its calls are coroutines
        self._task = asyncio.create_task(self._upload(declaration))

    async def _upload(self, declaration: upload_pb2.UploadDeclaration) -> upload_pb2.UploadResponse:
        answer: upload_pb2.UploadResponse = await self._stub.Upload(
            self._parts(declaration), timeout=TRANSFER_SECONDS
        )
        return answer

    async def take(self, chunk: bytes) -> None:
        await self._put(chunk)

    async def end(self) -> str:
        await self._put(None)
        answer = await self._answer()
        return answer.asset.id

    async def abort(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()  # it is known, or nobody is told

    async def _put(self, chunk: bytes | None) -> None:
        """Waits for room. Raises the refusal if `assets` has refused the image meanwhile."""
        if not self._chunks.full() and not self._task.done():
            self._chunks.put_nowait(chunk)
            return
        putting = asyncio.ensure_future(self._chunks.put(chunk))
        try:
            await asyncio.wait({putting, self._task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            putting.cancel()
        if self._task.done():
            await self._answer()

    async def _answer(self) -> upload_pb2.UploadResponse:
        try:
            return await self._task
        except DomainError as error:
            raise self._about(error) from None

    async def _parts(
        self, declaration: upload_pb2.UploadDeclaration
    ) -> AsyncIterator[upload_pb2.UploadRequest]:
        yield upload_pb2.UploadRequest(head=upload_pb2.UploadHead(declaration=declaration))
        while (chunk := await self._chunks.get()) is not None:
            yield upload_pb2.UploadRequest(chunk=chunk)

    def _about(self, error: DomainError) -> DomainError:
        """Returns the refusal of an upload, with the image and the field that the caller knows."""
        for detail in error.details:
            if isinstance(detail, error_details_pb2.BadRequest):
                return errors.invalid_fields(
                    [
                        (
                            violation.field.replace("head.declaration", "image"),
                            f"{self._named}: {violation.description}",
                        )
                        for violation in detail.field_violations
                    ]
                )
        metadata = {name: value for name, value in error.metadata.items() if name != "asset_id"}
        return DomainError(
            error.reason,
            f"{self._named}: {error.text}",
            {**metadata, "image": str(self._number)},
            error.details,
            error.trailers,
            error.source,
        )
