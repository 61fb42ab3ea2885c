"""`atelier styles seed`: brings the style catalogue in line with a manifest and its pictures.

    styles:
      - slug: warm-minimal
        name: Warm minimal
        description: Oak, linen and plaster.
        room_types: [kitchen, living-room]
        palette: [oak, sand, sage]
        images:
          - {file: warm-kitchen.jpg, room_type: kitchen, caption: Fronts in oiled oak}

It works as any client does: it uses only the contract and a token.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filetype
import grpc
import protovalidate
from atelier.assets.v1 import asset_pb2, style_pb2, style_pb2_grpc, upload_pb2, upload_pb2_grpc
from google.protobuf import json_format

from cli.refusals import refusal
from cli.state import LOCAL_ISSUER, State
from shared.formats import yaml as plain_yaml
from shared.rpc import auth

OWNER = "admin:atelier"
_MOST_BYTES = 10 * 1024 * 1024
_CHUNK = 256 * 1024
_AT_ONCE = 500  # digests per request
_SECONDS = 120
_STYLE_FIELDS = {"slug", "name", "description", "room_types", "palette", "images"}
_IMAGE_FIELDS = {"file", "room_type", "caption"}


class Unusable(Exception):
    """The manifest, or a file that it names, can't be used; the message says where."""


class SeedFailed(Exception):
    """The service refused or can't be reached. Finished work stays; another run continues it."""


@dataclass(frozen=True)
class Picture:
    """A file that the manifest names."""

    path: Path
    mime_type: str
    size: int
    sha256: str


def admin_token(state: State) -> str:
    """Returns a token for the suite of this machine. Every seeding has the same owner, whoever runs
    it."""
    state.prepare()
    key = auth.load_key(state.keys / "people.jwk")
    return auth.sign(
        key, issuer=LOCAL_ISSUER, subject="styles", role="admin", seconds=3600, owner=OWNER
    )


def seed(manifest: Path, address: str, token: str, report: Callable[[str], None]) -> None:
    """Brings the catalogue in line with the manifest. The whole manifest is checked before anything
    is sent. Raises Unusable and SeedFailed."""
    wanted, pictures = read_manifest(manifest)
    at = str(manifest)
    try:
        with grpc.insecure_channel(address) as channel:
            service = _Catalogue(channel, token)
            known = service.find(sorted({picture.sha256 for picture in pictures.values()}))
            for path, picture in pictures.items():
                if picture.sha256 not in known:
                    at = path
                    known[picture.sha256] = service.upload(picture)
                    report(f"{path}: uploaded")
            for request, files in wanted:
                at = request.slug
                for image, file in zip(request.images, files, strict=True):
                    image.asset_id = known[pictures[file].sha256]
                answer = service.put(request)
                state = "new" if answer.changed else "as it was"
                report(f"{request.slug}: version {answer.style.version_number}, {state}")
    except grpc.RpcError as error:
        raise SeedFailed(f"{at}: {refusal(error, address)}") from None


Wanted = tuple[style_pb2.PutStyleRequest, Sequence[str]]


def read_manifest(manifest: Path) -> tuple[list[Wanted], dict[str, Picture]]:
    """Returns each style with its images' files, and the pictures by file. Raises Unusable."""
    try:
        found = plain_yaml.load(manifest.read_bytes())
    except OSError as error:
        raise Unusable(f"{manifest}: {error.strerror}") from None
    except plain_yaml.NotPlain as problem:
        raise Unusable(f"{manifest}: {problem}") from None
    styles = found.get("styles") if isinstance(found, dict) else None
    if not isinstance(styles, list) or set(found) != {"styles"}:
        raise Unusable(f"{manifest}: expected one list, `styles:`")
    wanted: list[Wanted] = []
    pictures: dict[str, Picture] = {}
    for index, style in enumerate(styles):
        request, files = _style(style, f"{manifest}: styles[{index}]")
        if request.slug in (other.slug for other, _ in wanted):
            raise Unusable(
                f"{manifest}: styles[{index}]: the slug {request.slug} stands there twice"
            )
        for file in files:
            pictures.setdefault(file, _picture(manifest.parent / file))
        wanted.append((request, files))
    return wanted, pictures


def _style(style: Any, where: str) -> Wanted:
    if not isinstance(style, dict):
        raise Unusable(f"{where}: expected a style with slug and name")
    images = [] if style.get("images") is None else style["images"]
    if not isinstance(images, list) or not all(
        isinstance(image, dict) and image.get("file") for image in images
    ):
        raise Unusable(f"{where}.images: expected a list in which each image has a `file`")
    named = ((where, _STYLE_FIELDS, [style]), (f"{where}.images", _IMAGE_FIELDS, images))
    for place, fields, records in named:
        if unknown := {name for record in records for name in record} - fields:
            raise Unusable(
                f"{place}: {', '.join(sorted(map(str, unknown)))}: there is no such field"
            )
    stated = {
        **{name: value for name, value in style.items() if value is not None},
        "images": [
            {name: value for name, value in image.items() if name != "file"} for image in images
        ],
    }
    try:
        request = json_format.ParseDict(stated, style_pb2.PutStyleRequest())
    except json_format.ParseError as error:
        raise Unusable(f"{where}: {' '.join(str(error).split())}") from None
    if not request.slug or not request.name:
        raise Unusable(f"{where}: needs a slug and a name")
    for found in protovalidate.collect_violations(request):
        path = found.proto.field.elements if found.proto.field else []
        names = [element.field_name for element in path]
        if "asset_id" not in names:  # set once the picture is uploaded
            raise Unusable(f"{'.'.join((where, *names))}: {found.proto.message}")
    return request, [str(image["file"]) for image in images]


def _picture(path: Path) -> Picture:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise Unusable(f"{path}: is not a file")
        if not 0 < size <= _MOST_BYTES:
            raise Unusable(f"{path}: {size:,} bytes; a picture has 1 to {_MOST_BYTES:,} (10 MB)")
        content = path.read_bytes()
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None
    except ValueError:
        raise Unusable(f"{str(path)!a}: no file can have that name") from None
    mime_type = filetype.guess_mime(content)
    if not mime_type or not mime_type.startswith("image/"):
        raise Unusable(
            f"{path}: {mime_type or 'not a picture'}; use JPEG, PNG, WebP, AVIF, GIF or TIFF"
        )
    return Picture(path, mime_type, len(content), hashlib.sha256(content).hexdigest())


class _Catalogue:
    """Calls the style and upload services with a token."""

    def __init__(self, channel: grpc.Channel, token: str) -> None:
        # The generated type stubs are those of asyncio, so these are Any.
        self._styles: Any = style_pb2_grpc.StyleServiceStub(channel)
        self._uploads: Any = upload_pb2_grpc.UploadServiceStub(channel)
        self._options: dict[str, Any] = {
            "metadata": (("authorization", f"Bearer {token}"),),
            "timeout": _SECONDS,
            "wait_for_ready": False,
        }

    def find(self, digests: Sequence[str]) -> dict[str, str]:
        """Returns asset ids by digest."""
        found: dict[str, str] = {}
        for start in range(0, len(digests), _AT_ONCE):
            request = style_pb2.FindStylePicturesRequest(sha256s=digests[start : start + _AT_ONCE])
            answer = self._styles.FindStylePictures(request, **self._options)
            found |= {picture.sha256: picture.asset_id for picture in answer.pictures}
        return found

    def upload(self, picture: Picture) -> str:
        """Uploads a picture and returns its asset id. A repeat after an interruption continues the
        same asset."""
        declaration = upload_pb2.UploadDeclaration(
            kind=asset_pb2.ASSET_KIND_STYLE,
            file_name=picture.path.name,
            mime_type=picture.mime_type,
            size_bytes=picture.size,
            sha256=picture.sha256,
        )
        name = hashlib.sha256(declaration.SerializeToString(deterministic=True)).hexdigest()

        def parts() -> Iterator[upload_pb2.UploadRequest]:
            yield upload_pb2.UploadRequest(
                head={"request_id": f"styles/{name}", "declaration": declaration}
            )
            with picture.path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    yield upload_pb2.UploadRequest(chunk=chunk)

        return str(self._uploads.Upload(parts(), **self._options).asset.id)

    def put(self, request: style_pb2.PutStyleRequest) -> style_pb2.PutStyleResponse:
        answer: style_pb2.PutStyleResponse = self._styles.PutStyle(request, **self._options)
        return answer
