"""Steps of a client of techfiles, for tests to build on."""

import asyncio
import functools
import hashlib
import io
import re
import unicodedata
import uuid
from pathlib import Path
from typing import Any

import grpc
import pypdf
import pyvips
import yaml
from atelier.common.v1 import facts_pb2
from atelier.techfiles.v1 import collection_pb2 as col
from atelier.techfiles.v1 import collection_pb2_grpc, tech_file_pb2_grpc, tech_pack_pb2_grpc
from atelier.techfiles.v1 import tech_file_pb2 as tf
from atelier.techfiles.v1 import tech_pack_pb2 as tp
from google.protobuf import json_format

from tests.assets import flows as asset_flows
from tests.suite import ROOT, Client, browser

PHOTOS: Path = ROOT / "examples" / "photos"
PRODUCT = "product-1"
NOT_FOUND = grpc.StatusCode.NOT_FOUND


def request_id() -> str:
    return str(uuid.uuid4())


def file_service(client: Client) -> Any:
    return client.stub(tech_file_pb2_grpc.TechFileServiceStub)


def collection_service(client: Client) -> Any:
    return client.stub(collection_pb2_grpc.CollectionServiceStub)


def pack_service(client: Client) -> Any:
    return client.stub(tech_pack_pb2_grpc.TechPackServiceStub)


async def create(client: Client, **fields: Any) -> tf.TechFile:
    """Creates a completed sketch of the front, unless the fields say otherwise."""
    values = {
        "request_id": request_id(),
        "product_id": PRODUCT,
        "file_type": tf.TECH_FILE_TYPE_SKETCH,
        "view_type": tf.VIEW_TYPE_FRONT,
        "state": tf.TECH_FILE_STATE_COMPLETED,
        **fields,
    }
    answer = await file_service(client).CreateTechFile(tf.CreateTechFileRequest(**values))
    file: tf.TechFile = answer.tech_file
    return file


async def get(client: Client, file_id: str, **fields: Any) -> tf.TechFile:
    answer = await file_service(client).GetTechFile(
        tf.GetTechFileRequest(tech_file_id=file_id, **fields)
    )
    file: tf.TechFile = answer.tech_file
    return file


async def listed(client: Client, **fields: Any) -> list[tf.TechFile]:
    answer = await file_service(client).ListTechFiles(tf.ListTechFilesRequest(**fields))
    return list(answer.tech_files)


async def versions(client: Client, file_id: str, **fields: Any) -> list[tf.TechFileVersion]:
    request = tf.ListTechFileVersionsRequest(tech_file_id=file_id, **fields)
    return list((await file_service(client).ListTechFileVersions(request)).versions)


async def collect(client: Client, **fields: Any) -> col.Collection:
    values = {"request_id": request_id(), "product_id": PRODUCT, "name": "Winter line", **fields}
    answer = await collection_service(client).CreateCollection(
        col.CreateCollectionRequest(**values)
    )
    collection: col.Collection = answer.collection
    return collection


async def contents(client: Client, collection_id: str, **fields: Any) -> col.GetCollectionResponse:
    request = col.GetCollectionRequest(collection_id=collection_id, **fields)
    answer: col.GetCollectionResponse = await collection_service(client).GetCollection(request)
    return answer


async def ended(client: Client, run_id: str, *, timeout: float = 90) -> tp.TechPackRun:
    """Returns the run once it has ended."""
    async with asyncio.timeout(timeout):
        while True:
            answer = await pack_service(client).GetTechPackRun(
                tp.GetTechPackRunRequest(run_id=run_id)
            )
            if answer.run.state not in (tp.RUN_STATE_PENDING, tp.RUN_STATE_PROCESSING):
                run: tp.TechPackRun = answer.run
                return run
            await asyncio.sleep(0.1)


def example_facts() -> facts_pb2.Facts:
    """Returns the facts stated about the jacket in examples/photos."""
    stated = yaml.safe_load((PHOTOS / "facts.yaml").read_text())
    return json_format.ParseDict(stated, facts_pb2.Facts())


def large_facts() -> facts_pb2.Facts:
    """Returns more than a megabyte of facts, each part of which is allowed."""
    text = "ä" * 300
    shell = facts_pb2.MaterialFact(part=text, material=text, colour=text, supplier=text)
    return facts_pb2.Facts(materials=[shell] * 500)


@functools.cache
def photo(view: str) -> bytes:
    """Returns one of the example photographs, small enough to be quick."""
    data: bytes = pyvips.Image.thumbnail(str(PHOTOS / f"{view}.jpg"), 1000).jpegsave_buffer(Q=85)
    return data


async def revisions(client: Client, *views: str) -> list[tp.PackRevision]:
    """Uploads these views of the jacket; returns them as revisions."""
    numbers = {"front": tf.VIEW_TYPE_FRONT, "back": tf.VIEW_TYPE_BACK, "side": tf.VIEW_TYPE_SIDE}
    return [
        tp.PackRevision(
            revision_id=f"rev-{view}",
            view=numbers[view],
            asset_id=(await asset_flows.upload(client, photo(view))).id,
        )
        for view in views
    ]


async def generate(
    client: Client, pictures: list[tp.PackRevision], **fields: Any
) -> tp.TechPackRun:
    values = {"request_id": request_id(), "product_id": PRODUCT, "revisions": pictures, **fields}
    answer = await pack_service(client).GenerateTechPack(tp.GenerateTechPackRequest(**values))
    run: tp.TechPackRun = answer.run
    return run


async def export(client: Client, collection_id: str, **fields: Any) -> tp.Export:
    """Makes an export and returns it finished."""
    request = tp.ExportCollectionRequest(collection_id=collection_id, wait=True, **fields)
    answer = await pack_service(client).ExportCollection(request, timeout=60)
    assert answer.export.state == tp.EXPORT_STATE_COMPLETED, answer.export
    made: tp.Export = answer.export
    return made


async def fetch(made: tp.Export) -> bytes:
    """Returns the export's bytes, which anybody with its URL gets, and checks their digest."""
    async with browser() as http:
        answer = await http.get(made.file_url)
    assert answer.status_code == 200 and hashlib.sha256(answer.content).hexdigest() == made.sha256
    return answer.content


def text_of(pdf: bytes) -> str:
    """Returns the text of all pages with single spaces, without the marks of an allowed line
    break."""
    pages = " ".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(pdf)).pages)
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", pages).replace("\u200b", ""))
