"""Makes a tech pack from photographs, as an outside client: it has only generated stubs, a token
and four addresses.

    python -P demo.py --out DIR [--facts FILE] [PHOTO ...]  (needs ATELIER_TOKEN and the stubs)

Exit status 0: everything was made and checked. 1: something failed; one line says what. 2: an input
can't be used.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filetype
import grpc
import httpx
import protovalidate
import yaml
from atelier.assets.v1 import (
    asset_pb2,
    asset_pb2_grpc,
    upload_pb2,
    upload_pb2_grpc,
    variant_pb2,
    variant_pb2_grpc,
)
from atelier.common.v1 import facts_pb2
from atelier.conversions.v1 import (
    conversion_pb2,
    conversion_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    job_pb2,
)
from atelier.pipeline.v1 import (
    phase_pb2,
    product_pb2,
    product_pb2_grpc,
    review_pb2,
    review_pb2_grpc,
)
from atelier.techfiles.v1 import tech_file_pb2, tech_pack_pb2, tech_pack_pb2_grpc
from google.protobuf import json_format
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

SAMPLES = Path(__file__).resolve().parent.parent / "photos"
VIEWS = ("front", "back", "side")
PACK_VIEWS = {
    "front": tech_file_pb2.VIEW_TYPE_FRONT,
    "back": tech_file_pb2.VIEW_TYPE_BACK,
    "side": tech_file_pb2.VIEW_TYPE_SIDE,
}
PRESETS = ("thumb", "small", "large", "avif")
MOST_BYTES = 10 * 1024 * 1024
MOST_PIXELS = 50_000_000
PATIENCE_SECONDS = 300
PHASES = {1: "product analysis", 2: "market research", 3: "SEO analysis", 4: "product listing"}
console = Console(highlight=False)


class Unusable(Exception):
    """An input that can't be used; the message names the limit."""


class Failed(Exception):
    """Something that should have been made wasn't."""


# Inputs


def check_photo(path: Path) -> str:
    """Returns the file's media type. Raises Unusable."""
    if not path.is_file():
        raise Unusable(f"{path}: there is no such file")
    size = path.stat().st_size
    if not 0 < size <= MOST_BYTES:
        raise Unusable(
            f"{path}: {size:,} bytes; a photograph must have 1 to {MOST_BYTES:,} bytes (10 MB)"
        )
    found = filetype.guess_mime(path)
    if found not in (
        "image/jpeg",
        "image/png",
        "image/webp",
        "image/avif",
        "image/tiff",
        "image/gif",
    ):
        raise Unusable(
            f"{path}: {found or 'not a picture'}; use JPEG, PNG, WebP, AVIF, GIF or TIFF"
        )
    pixels = _pixels(path)
    if pixels > MOST_PIXELS:
        raise Unusable(
            f"{path}: {pixels / 1e6:.0f} megapixels; the limit is {MOST_PIXELS // 1_000_000}"
            " megapixels (50 MP)"
        )
    return str(found)


def _pixels(path: Path) -> int:
    """Returns the number of pixels, from the header only: the services decode and verify the rest.
    Raises Unusable if the header can't be read."""
    import pyvips

    try:
        header = pyvips.Image.new_from_file(str(path))
        return int(header.width * header.height)
    except pyvips.Error:
        raise Unusable(f"{path}: can't be opened as a picture; it may be damaged") from None


def read_facts(path: Path | None) -> facts_pb2.Facts:
    if path is None:
        return facts_pb2.Facts()
    try:
        found = yaml.safe_load(path.read_text())
        if not isinstance(found, dict | None):
            raise Unusable(
                f"{path}: expected names with values, such as `product: {{name: Jacket}}`"
            )
        facts: facts_pb2.Facts = json_format.ParseDict(found or {}, facts_pb2.Facts())
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, json_format.ParseError, UnicodeDecodeError) as error:
        raise Unusable(f"{path}: {' '.join(str(error).split())}") from None
    # The contract's own constraints, which the services enforce too.
    violations = [violation.proto for violation in protovalidate.collect_violations(facts)]
    if violations:
        raise Unusable(
            f"{path}: {'; '.join(f'{_place(v.field)}: {v.message}' for v in violations[:10])}"
        )
    return facts


def _place(field_path: Any) -> str:
    """Formats a field path, such as `dimensions[0].value`."""
    steps = ((element.field_name, element.subscript) for element in field_path.elements)
    return ".".join(
        f"{name}[{subscript.value}]" if subscript else str(name) for name, subscript in steps
    )


# The services


class Atelier:
    """Stubs for the four services, with the token on every call."""

    def __init__(self, token: str, addresses: dict[str, str]) -> None:
        self._metadata = (("authorization", f"Bearer {token}"),)
        channels = {name: grpc.insecure_channel(address) for name, address in addresses.items()}
        self.assets = asset_pb2_grpc.AssetServiceStub(channels["assets"])
        self.uploads = upload_pb2_grpc.UploadServiceStub(channels["assets"])
        self.variants = variant_pb2_grpc.VariantServiceStub(channels["assets"])
        self.conversions = conversion_pb2_grpc.ConversionServiceStub(channels["conversions"])
        self.generations = generation_pb2_grpc.GenerationServiceStub(channels["conversions"])
        self.products = product_pb2_grpc.ProductServiceStub(channels["pipeline"])
        self.reviews = review_pb2_grpc.ReviewServiceStub(channels["pipeline"])
        self.packs = tech_pack_pb2_grpc.TechPackServiceStub(channels["techfiles"])

    def call(self, method: Any, request: Any, timeout: float = PATIENCE_SECONDS) -> Any:
        return method(request, metadata=self._metadata, timeout=timeout)

    def watch(self, method: Any, request: Any) -> Iterator[Any]:
        stream = method(request, metadata=self._metadata, timeout=PATIENCE_SECONDS)
        try:
            yield from stream
        finally:
            stream.cancel()


def new_id() -> str:
    return str(uuid.uuid4())


@dataclass
class Run:
    """Collects the results for summary.json."""

    out: Path
    summary: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - began, 2)


def upload(
    atelier: Atelier, path: Path, mime_type: str, kind: asset_pb2.AssetKind
) -> asset_pb2.Asset:
    data = path.read_bytes()
    declaration = upload_pb2.UploadDeclaration(
        kind=kind,
        file_name=path.name,
        mime_type=mime_type,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    requested = atelier.call(
        atelier.uploads.RequestUpload,
        upload_pb2.RequestUploadRequest(request_id=new_id(), declaration=declaration),
    )
    target = requested.target
    with httpx.Client(timeout=120) as http:
        if target.method == "POST":
            sent = http.post(
                target.url, data=dict(target.fields), files={"file": (path.name, data)}
            )
        else:
            sent = http.put(target.url, content=data, headers=dict(target.headers))
    if not sent.is_success:
        raise Failed(f"{path.name}: the store answered {sent.status_code}: {sent.text[:200]}")
    confirmed = atelier.call(
        atelier.uploads.ConfirmUpload,
        upload_pb2.ConfirmUploadRequest(request_id=new_id(), upload_id=requested.upload_id),
    )
    asset: asset_pb2.Asset = confirmed.asset
    return asset


def download(url: str, path: Path) -> int:
    """Downloads a file; returns the number of bytes written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with httpx.stream("GET", url, timeout=120) as answer, path.open("wb") as file:
        if answer.status_code != 200:
            raise Failed(f"{path.name}: the store answered {answer.status_code}")
        for chunk in answer.iter_bytes():
            file.write(chunk)
    return path.stat().st_size


def follow_variants(atelier: Atelier, asset_ids: list[str], advance: Callable[[], None]) -> None:
    """Waits until every variant of every asset is READY. The stream tells; nothing is polled."""
    waiting = {(asset_id, preset) for asset_id in asset_ids for preset in PRESETS}
    request = asset_pb2.WatchAssetsRequest(asset_ids=asset_ids)
    for item in atelier.watch(atelier.assets.WatchAssets, request):
        variant = item.variant
        if variant.state == asset_pb2.VARIANT_STATE_FAILED:
            raise Failed(f"variant {variant.preset}: {variant.error_message}")
        if (
            variant.state == asset_pb2.VARIANT_STATE_READY
            and (variant.asset_id, variant.preset) in waiting
        ):
            waiting.remove((variant.asset_id, variant.preset))
            advance()
        if not waiting:
            return
    raise Failed("the stream of variants ended early")


def fetch_variants(atelier: Atelier, assets: dict[str, asset_pb2.Asset], run: Run) -> None:
    listed = []
    for name, asset in assets.items():
        request = variant_pb2.ListVariantsRequest(asset_id=asset.id, include_urls=True)
        for variant in atelier.call(atelier.variants.ListVariants, request).variants:
            file = (
                run.out
                / "variants"
                / f"{name}-{variant.preset}.{variant.mime_type.partition('/')[2]}"
            )
            size = download(variant.url, file)
            if size != variant.size_bytes:
                raise Failed(f"{file.name}: {size} bytes came, {variant.size_bytes} were promised")
            listed.append(
                {
                    "id": variant.id,
                    "of": name,
                    "preset": variant.preset,
                    "width": variant.width,
                    "height": variant.height,
                    "bytes": size,
                    "file": f"variants/{file.name}",
                }
            )
    run.summary["variants"] = listed


def follow_product(
    atelier: Atelier, product_id: str, run: Run, tell: Callable[[int, str], None]
) -> None:
    """Follows the product through its four phases. Approves every review that is opened, whatever
    the model found."""
    phases: dict[int, dict[str, Any]] = {}
    for answer in atelier.watch(
        atelier.products.WatchProduct, product_pb2.WatchProductRequest(product_id=product_id)
    ):
        change = answer.change
        what = change.WhichOneof("item")
        if what == "phase":
            phase = change.phase
            state = phase_pb2.PhaseState.Name(phase.state).removeprefix("PHASE_STATE_")
            phases[phase.number] = {
                "phase": phase.number,
                "name": PHASES[phase.number],
                "state": state,
                "started": _time(phase, "start_time"),
                "completed": _time(phase, "complete_time"),
                "confidence": round(phase.confidence, 3) if phase.HasField("confidence") else None,
            }
            done = sum(entry["state"] == "COMPLETED" for entry in phases.values())
            tell(done, f"{PHASES[phase.number]}: {state.lower().replace('_', ' ')}")
            if phase.state == phase_pb2.PHASE_STATE_FAILED:
                raise Failed(f"{PHASES[phase.number]}: {phase.error_message}")
        elif what == "review" and change.review.state == review_pb2.REVIEW_STATE_OPEN:
            approve(atelier, change.review, run)
        elif what == "product" and change.product.state == product_pb2.PRODUCT_STATE_ERROR:
            raise Failed(f"product: {change.product.error_message}")
        if len(phases) == 4 and all(entry["state"] == "COMPLETED" for entry in phases.values()):
            run.summary["phases"] = [phases[number] for number in sorted(phases)]
            return
    raise Failed("the stream of the product ended early")


def approve(atelier: Atelier, review: review_pb2.Review, run: Run) -> None:
    answered = run.summary.setdefault("reviews", [])
    if review.id in {entry["id"] for entry in answered}:
        return
    answered.append(
        {
            "id": review.id,
            "phase": review.phase,
            "model_confidence": round(review.model_confidence, 3),
        }
    )
    atelier.call(
        atelier.reviews.SubmitReview,
        review_pb2.SubmitReviewRequest(
            request_id=new_id(),
            review_id=review.id,
            decision=review_pb2.REVIEW_DECISION_APPROVE,
            note="approved by the demo",
        ),
    )


def _time(message: Any, name: str) -> str | None:
    return getattr(message, name).ToJsonString() if message.HasField(name) else None


def convert(atelier: Atelier, person: asset_pb2.Asset, cloth: asset_pb2.Asset, run: Run) -> None:
    request = conversion_pb2.CreateConversionRequest(
        request_id=new_id(), user_asset_id=person.id, cloth_asset_id=cloth.id, wait=True
    )
    made = atelier.call(atelier.conversions.CreateConversion, request).conversion
    if made.state != job_pb2.JOB_STATE_COMPLETED:
        raise Failed(f"conversion: {made.error_message or 'not finished in time'}")
    shown = atelier.call(
        atelier.conversions.GetConversion,
        conversion_pb2.GetConversionRequest(conversion_id=made.id, include_urls=True),
    ).conversion
    size = download(shown.image_url, run.out / "try-on.jpg")
    run.summary["conversions"] = [
        {
            "id": made.id,
            "result_asset_id": made.result_asset_id,
            "model": made.recipe.model,
            "credits": made.credits,
            "confidence": round(made.confidence, 3),
            "bytes": size,
            "file": "try-on.jpg",
        }
    ]


def generate(atelier: Atelier, references: list[str], facts: facts_pb2.Facts, run: Run) -> None:
    request = generation_pb2.CreateGenerationRequest(
        request_id=new_id(),
        task=generation_pb2.GENERATION_TASK_IMAGE,
        prompt=facts.product.name or "the product on a plain background",
        aspect_ratio="4:3",
        resolution="1K",
        reference_asset_ids=references,
        wait=True,
    )
    made = atelier.call(atelier.generations.CreateGeneration, request).generation
    if made.state != job_pb2.JOB_STATE_COMPLETED:
        raise Failed(f"generation: {made.error_message or 'not finished in time'}")
    shown = atelier.call(
        atelier.generations.GetGeneration,
        generation_pb2.GetGenerationRequest(generation_id=made.id, include_urls=True),
    ).generation
    size = download(shown.image_url, run.out / f"generated.{made.format or 'jpeg'}")
    run.summary["generations"] = [
        {
            "id": made.id,
            "result_asset_id": made.result_asset_id,
            "model": made.recipe.model,
            "credits": made.credits,
            "prompt": made.prompt,
            "full_prompt": made.full_prompt,
            "bytes": size,
        }
    ]


def make_pack(
    atelier: Atelier,
    product_id: str,
    photos: dict[str, asset_pb2.Asset],
    facts: facts_pb2.Facts,
    run: Run,
    tell: Callable[[int, str], None],
) -> tech_pack_pb2.TechPackRun:
    revisions = [
        tech_pack_pb2.PackRevision(
            revision_id=f"{view}-1", view=PACK_VIEWS[view], asset_id=asset.id
        )
        for view, asset in photos.items()
    ]
    request = tech_pack_pb2.GenerateTechPackRequest(
        request_id=new_id(),
        product_id=product_id,
        revisions=revisions,
        facts=facts,
        collection_name=f"{facts.product.name or 'Product'} tech pack",
    )
    started = atelier.call(atelier.packs.GenerateTechPack, request).run
    latest: tech_pack_pb2.TechPackRun = started
    for answer in atelier.watch(
        atelier.packs.WatchTechPackRun, tech_pack_pb2.WatchTechPackRunRequest(run_id=started.id)
    ):
        if answer.WhichOneof("item") == "run":
            latest = answer.run
            current = [
                s.name for s in latest.steps if s.state == tech_pack_pb2.STEP_STATE_PROCESSING
            ]
            tell(latest.progress_percent, ", ".join(current[:2]))
    steps = [
        {
            "step": s.name,
            "state": tech_pack_pb2.StepState.Name(s.state).removeprefix("STEP_STATE_"),
            "credits": s.credits,
        }
        for s in latest.steps
    ]
    run.summary["collection"] = {
        "id": latest.collection_id,
        "run_id": latest.id,
        "progress_percent": latest.progress_percent,
        "credits": latest.total_credits_used,
        "steps": steps,
    }
    if latest.state != tech_pack_pb2.RUN_STATE_COMPLETED:
        failed = [f"{s.name}: {s.error_message}" for s in latest.steps if s.error_message]
        raise Failed(
            f"tech pack: {'; '.join(failed) or latest.error_message or 'not finished in time'}"
        )
    return latest


def export(atelier: Atelier, pack: tech_pack_pb2.TechPackRun, run: Run) -> None:
    """Exports the ZIP, which includes the PDF that the run has made, and downloads both."""
    request = tech_pack_pb2.ExportCollectionRequest(
        request_id=new_id(),
        collection_id=pack.collection_id,
        format=tech_pack_pb2.EXPORT_FORMAT_ZIP,
        wait=True,
    )
    archive = atelier.call(atelier.packs.ExportCollection, request).export
    run.summary["exports"] = []
    for name, export_id in (("pdf", pack.export_id), ("zip", archive.id)):
        shown = atelier.call(
            atelier.packs.GetExport, tech_pack_pb2.GetExportRequest(export_id=export_id)
        ).export
        if shown.state != tech_pack_pb2.EXPORT_STATE_COMPLETED:
            raise Failed(f"{name}: {shown.error_message or 'not finished in time'}")
        file = run.out / f"tech-pack.{name}"
        download(shown.file_url, file)
        if hashlib.sha256(file.read_bytes()).hexdigest() != shown.sha256:
            raise Failed(f"{file.name}: its checksum isn't the promised one")
        run.summary["exports"].append(
            {
                "id": shown.id,
                "file": file.name,
                "bytes": shown.size_bytes,
                "warnings": list(shown.warnings),
            }
        )


def check_results(run: Run) -> None:
    """Opens the results as their recipient would, and checks them. Raises Failed."""
    if not (run.out / "tech-pack.pdf").read_bytes().startswith(b"%PDF-"):
        raise Failed("tech-pack.pdf is not a PDF")
    with zipfile.ZipFile(run.out / "tech-pack.zip") as archive:
        if bad := archive.testzip():
            raise Failed(f"tech-pack.zip: {bad} is damaged")
        for line in archive.read("SHA256SUMS").decode().splitlines():
            digest, _, name = line.partition("  ")
            if hashlib.sha256(archive.read(name)).hexdigest() != digest:
                raise Failed(f"tech-pack.zip: {name} has another checksum than SHA256SUMS says")


def remove_earlier(out: Path) -> None:
    """Removes the results of an earlier run, so that those of two products never mix."""
    shutil.rmtree(out / "variants", ignore_errors=True)
    for name in ("try-on.jpg", "generated.jpeg", "tech-pack.pdf", "tech-pack.zip", "summary.json"):
        (out / name).unlink(missing_ok=True)


# The whole run


def play(
    atelier: Atelier, inputs: list[tuple[Path, str]], facts: facts_pb2.Facts, out: Path
) -> Run:
    run = Run(out)
    out.mkdir(parents=True, exist_ok=True)
    remove_earlier(out)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:22}"),
        BarColumn(16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    figure = (SAMPLES / "figure.jpg", "image/jpeg", asset_pb2.ASSET_KIND_USER)
    sent = [(path, mime, asset_pb2.ASSET_KIND_PRODUCT) for path, mime in inputs]
    sent += [figure, (*inputs[0], asset_pb2.ASSET_KIND_CLOTH)]
    with (
        Progress(*columns, console=console) as progress,
        concurrent.futures.ThreadPoolExecutor(6) as threads,
    ):

        def bar(text: str, total: int) -> Callable[..., None]:
            task = progress.add_task(text, total=total, note="")
            return lambda **change: progress.update(task, **change)

        with run.timed("uploads"):
            told = bar("Uploading photographs", len(sent))
            uploads = [threads.submit(upload, atelier, *one) for one in sent]
            for done in concurrent.futures.as_completed(uploads):
                done.result()
                told(advance=1)
            assets = [one.result() for one in uploads]
        products, person, cloth = assets[:-2], assets[-2], assets[-1]
        views = dict(zip(VIEWS, products, strict=False))
        with run.timed("variants, phases, conversion and generation"):
            variants = bar("Making variants", len(PRESETS) * len(assets))
            following = threads.submit(
                follow_variants, atelier, [a.id for a in assets], lambda: variants(advance=1)
            )
            created = create_product(atelier, products, facts)
            phases = bar("Analysing the product", 4)
            product = threads.submit(
                follow_product,
                atelier,
                created.id,
                run,
                lambda done, note: phases(completed=done, note=note),
            )
            tried = bar("Trying it on", 1)
            conversion = threads.submit(convert, atelier, person, cloth, run)
            painted = bar("Generating a picture", 1)
            generation = threads.submit(generate, atelier, [products[0].id], facts, run)
            for work, finish in (
                (conversion, tried),
                (generation, painted),
                (product, None),
                (following, None),
            ):
                work.result()
                if finish:
                    finish(completed=1)
            others = {
                f"photo-{n}": asset
                for n, asset in enumerate(products[len(VIEWS) :], len(VIEWS) + 1)
            }
            names = {**views, **others, "figure": person, "cloth": cloth}
            fetch_variants(atelier, names, run)
        with run.timed("tech pack"):
            packing = bar("Making the tech pack", 100)
            pack = make_pack(
                atelier,
                created.id,
                views,
                facts,
                run,
                lambda done, note: packing(completed=done, note=note),
            )
            packing(note="")
        with run.timed("exports"):
            exporting = bar("Exporting PDF and ZIP", 1)
            export(atelier, pack, run)
            check_results(run)
            exporting(completed=1)
    run.summary |= {
        "product_id": created.id,
        "assets": {name: asset.id for name, asset in names.items()},
        "credits": (
            run.summary["collection"]["credits"]
            + sum(
                entry["credits"]
                for entry in run.summary["conversions"] + run.summary["generations"]
            )
        ),
        "seconds": run.seconds,
    }
    (out / "summary.json").write_text(json.dumps(run.summary, indent=2, ensure_ascii=False) + "\n")
    return run


def create_product(
    atelier: Atelier, products: list[asset_pb2.Asset], facts: facts_pb2.Facts
) -> product_pb2.Product:
    images = [
        product_pb2.NewImage(
            asset_id=asset.id,
            view_type=f"VIEW_TYPE_{VIEWS[number].upper()}" if number < len(VIEWS) else None,
            primary=number == 0,
        )
        for number, asset in enumerate(products)
    ]
    request = product_pb2.CreateProductRequest(request_id=new_id(), images=images, facts=facts)
    product: product_pb2.Product = atelier.call(atelier.products.CreateProduct, request).product
    return product


def show(run: Run) -> None:
    here = Path(os.path.relpath(run.out))
    table = Table(title="What was made", title_justify="left")
    table.add_column("what", style="bold")
    table.add_column("result")
    table.add_column("where")
    for phase in run.summary["phases"]:
        confidence = (
            f", confidence {phase['confidence']:.2f}" if phase["confidence"] is not None else ""
        )
        table.add_row(
            f"phase {phase['phase']}: {phase['name']}", f"{phase['state'].lower()}{confidence}", ""
        )
    for review in run.summary.get("reviews", []):
        table.add_row(
            f"review of phase {review['phase']}",
            f"approved; model confidence {review['model_confidence']:.2f}",
            "",
        )
    table.add_row("variants", str(len(run.summary["variants"])), str(here / "variants"))
    for name in ("try-on.jpg", "generated.jpeg", "tech-pack.pdf", "tech-pack.zip", "summary.json"):
        table.add_row(name, f"{(run.out / name).stat().st_size:,} bytes", str(here / name))
    table.add_row("credits", str(run.summary["credits"]), "")
    for stage, seconds in run.seconds.items():
        table.add_row(stage, f"{seconds:.1f} s", "")
    console.print(table)
    for warning in dict.fromkeys(
        text for made in run.summary["exports"] for text in made["warnings"]
    ):
        console.print(f"[yellow]note:[/yellow] {warning}", soft_wrap=True)
    console.print(
        f'Next:\n  look at {here / "tech-pack.pdf"}\n  make demo PHOTOS="front.jpg back.jpg"'
        " FACTS=facts.yaml   with pictures of your own\n  make up                                 "
        "                 keep the suite running and call it yourself",
        soft_wrap=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "photos",
        nargs="*",
        type=Path,
        help="front, back and side of one product; others may follow",
    )
    parser.add_argument(
        "--facts",
        type=Path,
        help="what is known about it, as YAML (see examples/photos/facts.yaml)",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory for the results")
    parser.add_argument("--check", action="store_true", help="only check the inputs")
    for name, port in (
        ("assets", 50051),
        ("conversions", 50052),
        ("pipeline", 50053),
        ("techfiles", 50054),
    ):
        parser.add_argument(
            f"--{name}", default=f"127.0.0.1:{port}", help=f"address of {name} (%(default)s)"
        )
    options = parser.parse_args()
    own = not options.photos
    photos = [SAMPLES / f"{view}.jpg" for view in VIEWS] if own else options.photos
    try:
        inputs = [(path, check_photo(path)) for path in photos[:20]]
        facts = read_facts(SAMPLES / "facts.yaml" if own and not options.facts else options.facts)
    except Unusable as problem:
        console.print(f"[bold red]demo:[/bold red] {problem}", soft_wrap=True)
        return 2
    if options.check:
        return 0
    addresses = {
        name: getattr(options, name) for name in ("assets", "conversions", "pipeline", "techfiles")
    }
    try:
        show(
            play(
                Atelier(os.environ.get("ATELIER_TOKEN", ""), addresses), inputs, facts, options.out
            )
        )
    except Failed as problem:
        console.print(f"[bold red]demo:[/bold red] {problem}", soft_wrap=True)
        return 1
    except grpc.RpcError as error:
        console.print(
            f"[bold red]demo:[/bold red] {error.code().name}: {error.details()}", soft_wrap=True
        )
        return 2 if error.code() == grpc.StatusCode.INVALID_ARGUMENT else 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
