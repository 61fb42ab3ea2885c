"""Plans of batches: what the items of a batch are made from, as it was checked when the batch was
created.

Items are numbered from 0. The first list of the request changes slowest: all garments and styles of
the first person come first. A plan is stored as JSON, with what was read of each picture, so that
no item asks for it again. If a picture is deleted meanwhile, the items that need it fail.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from uuid import UUID

from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import batch_pb2 as pb
from atelier.conversions.v1 import conversion_pb2, generation_pb2
from psycopg.types.json import Jsonb

from services.conversions import assets, drafting, rules
from services.conversions.consenting import Consents
from services.conversions.job_calls import ScheduledRequest, scheduling
from shared.database.db import Database
from shared.rpc import errors
from shared.rpc.calls import Peers

Columns = dict[str, Any]
_IDS = ("reference_asset_ids", "source_asset_id", "logo_asset_id", "regenerated_from", "retry_of")
_SETTINGS = ("style", "aspect_ratio", "quality", "format", "resolution", "dataset_id")
_SHOWN_OF_PROMPT = 60


class BatchPlan(ABC):
    """What the items of one batch are made from."""

    @abstractmethod
    def columns(self, number: int) -> Columns:
        """Returns the columns of the row of item `number` that the caller decides, without its
        consents, which must hold when it is created."""

    @abstractmethod
    def pictures(self) -> set[UUID]:
        """Returns the pictures that items are made from."""

    @abstractmethod
    def photographs(self, number: int) -> list[UUID]:
        """Returns the photographs of persons that item `number` is made from."""

    @abstractmethod
    def name(self, number: int) -> str:
        """Returns what item `number` is made from, in a few words, for a file's name."""

    @abstractmethod
    def answer(self) -> dict[str, Any]:
        """Returns the request's items as a field of an answer."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class _Picture:
    """What was read of an input picture."""

    id: str
    sha256: str
    file_name: str
    free: bool

    @staticmethod
    def of(asset: asset_pb2.Asset) -> "_Picture":
        return _Picture(asset.id, asset.sha256, asset.file_name, asset.free)

    @property
    def stem(self) -> str:
        return self.file_name.rpartition(".")[0] or self.file_name or self.id


@dataclass(frozen=True)
class ConversionPlan(BatchPlan):
    persons: Sequence[_Picture]
    clothes: Sequence[_Picture]
    styles: Sequence[str]
    schedule: Mapping[str, Any]

    def columns(self, number: int) -> Columns:
        person, cloth, style = self._item(number)
        inputs = [("user", person.sha256), ("cloth", cloth.sha256)]
        return {
            **self.schedule,
            "style_name": style,
            "metadata": Jsonb({}),
            "product_id": "",
            "user_asset_id": UUID(person.id),
            "cloth_asset_id": UUID(cloth.id),
            "free": person.free and cloth.free,
            "recipe_digest": rules.recipe_digest(inputs, style=style),
        }

    def pictures(self) -> set[UUID]:
        return {UUID(each.id) for each in (*self.persons, *self.clothes)}

    def photographs(self, number: int) -> list[UUID]:
        person, _, _ = self._item(number)
        return [UUID(person.id)]

    def name(self, number: int) -> str:
        person, cloth, style = self._item(number)
        return " + ".join(part for part in (person.stem, cloth.stem, style) if part)

    def answer(self) -> dict[str, Any]:
        asked = pb.BatchConversions(
            user_asset_ids=[each.id for each in self.persons],
            cloth_asset_ids=[each.id for each in self.clothes],
            style_names=[each for each in self.styles if each],
        )
        return {"conversions": asked}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def _item(self, number: int) -> tuple[_Picture, _Picture, str]:
        rest, style = divmod(number, len(self.styles))
        person, cloth = divmod(rest, len(self.clothes))
        return self.persons[person], self.clothes[cloth], self.styles[style]


@dataclass(frozen=True)
class GenerationPlan(BatchPlan):
    """`draft`: the columns that all items share. `digests`: those of its pictures, in the order in
    which they go into the model. `persons`: its photographs of persons."""

    draft: drafting.NewGeneration
    digests: Sequence[str]
    prompts: Sequence[str]
    seeds: Sequence[int | None]
    persons: Sequence[str]

    def columns(self, number: int) -> Columns:
        prompt, seed = self._item(number)
        draft = replace(self.draft, prompt=prompt, seed=seed)
        pictures = [asset_pb2.Asset(sha256=each) for each in self.digests]
        return {
            **draft.columns(),
            "recipe_digest": drafting.recipe(draft, pictures).digest,
        }

    def pictures(self) -> set[UUID]:
        logo = self.draft.logo_asset_id
        return {*self.draft.reference_asset_ids, *([logo] if logo else [])}

    def photographs(self, number: int) -> list[UUID]:
        return [UUID(each) for each in self.persons]

    def name(self, number: int) -> str:
        prompt, seed = self._item(number)
        words = " ".join(prompt.split())[:_SHOWN_OF_PROMPT].strip(" .")
        return words if seed is None else f"{words} + seed {seed}"

    def answer(self) -> dict[str, Any]:
        asked = pb.BatchGenerations(
            prompts=self.prompts,
            seeds=[each for each in self.seeds if each is not None],
            reference_asset_ids=[str(each) for each in self.draft.reference_asset_ids],
            **{name: getattr(self.draft, name) for name in _SETTINGS},
        )
        return {"generations": asked}

    def to_json(self) -> dict[str, Any]:
        draft = asdict(self.draft)
        for name in _IDS:
            draft[name] = _as_text(draft[name])
        return {**asdict(self), "draft": draft}

    def _item(self, number: int) -> tuple[str, int | None]:
        prompt, seed = divmod(number, len(self.seeds))
        return self.prompts[prompt], self.seeds[seed]


def _as_text(value: Any) -> Any:
    """Returns ids as JSON has them."""
    if isinstance(value, list):
        return [str(each) for each in value]
    return None if value is None else str(value)


def _as_id(value: Any) -> Any:
    if isinstance(value, list):
        return [UUID(each) for each in value]
    return None if value is None else UUID(value)


def read(job: str, stored: Mapping[str, Any]) -> BatchPlan:
    """Returns a plan from its JSON. `job`: the table of the items."""
    if job == "conversions":
        return ConversionPlan(
            [_Picture(**each) for each in stored["persons"]],
            [_Picture(**each) for each in stored["clothes"]],
            stored["styles"],
            stored["schedule"],
        )
    draft = {**stored["draft"], **{name: _as_id(stored["draft"][name]) for name in _IDS}}
    new = drafting.NewGeneration(**draft)
    return GenerationPlan(
        new, stored["digests"], stored["prompts"], stored["seeds"], stored["persons"]
    )


def first_request(request: pb.CreateBatchRequest) -> ScheduledRequest:
    """Returns a request for the batch's first item alone."""
    priority = request.priority if request.HasField("priority") else rules.DEFAULT_PRIORITY
    schedule: dict[str, Any] = {"priority": priority, "provider": request.provider}
    if request.WhichOneof("items") == "conversions":
        return conversion_pb2.CreateConversionRequest(**schedule)
    asked = request.generations
    return generation_pb2.CreateGenerationRequest(
        prompt=asked.prompts[0],
        reference_asset_ids=asked.reference_asset_ids,
        **{name: getattr(asked, name) for name in _SETTINGS},
        **schedule,
    )


def item_count(request: pb.CreateBatchRequest) -> int:
    """Returns the number of items that the request asks for. Raises INVALID_ARGUMENT for more than
    a batch may have."""
    field = request.WhichOneof("items") or ""
    if field == "conversions":
        tries = request.conversions
        lists = {
            "persons": len(tries.user_asset_ids),
            "garments": len(tries.cloth_asset_ids),
            "styles": len(tries.style_names) or 1,
        }
    else:
        images = request.generations
        lists = {"prompts": len(images.prompts), "seeds": len(images.seeds) or 1}
    total = 1
    for each in lists.values():
        total *= each
    if total > rules.BATCH_ITEMS:
        said = " x ".join(f"{count} {name}" for name, count in lists.items())
        text = f"asks for {total:,} items ({said}); a batch has at most {rules.BATCH_ITEMS:,}"
        raise errors.invalid(field, f"{text}: ask for fewer, or create several batches")
    return total


async def check(db: Database, peers: Peers, request: pb.CreateBatchRequest) -> BatchPlan:
    """Checks the pictures and the dataset of the request, and returns its plan. Raises NOT_FOUND,
    FAILED_PRECONDITION or INVALID_ARGUMENT, and names the field."""
    if request.WhichOneof("items") == "conversions":
        return await _check_conversions(db, peers, request)
    draft = drafting.new(first_request(request))  # type: ignore[arg-type]  # of a generation
    images = None if draft.reference_asset_ids else rules.DATASET_IMAGES
    try:
        await drafting.take_from_dataset(db, peers, draft, images=images)
    except errors.DomainError as refusal:
        if "field" in refusal.metadata:
            refusal.metadata["field"] = f"generations.{refusal.metadata['field']}"
        raise
    wanted = drafting.wanted(draft, "generations.reference_asset_ids")
    pictures = await assets.check(peers, wanted)
    asked = request.generations
    seeds: list[int | None] = [*asked.seeds] or [None]
    await Consents(db).check(f"generation.{draft.task}", pictures)
    persons = {each.id: None for each in pictures if each.kind == asset_pb2.ASSET_KIND_USER}
    digests = [each.sha256 for each in pictures]
    return GenerationPlan(draft, digests, [*asked.prompts], seeds, [*persons])


async def _check_conversions(
    db: Database, peers: Peers, request: pb.CreateBatchRequest
) -> ConversionPlan:
    asked = request.conversions
    wanted = []
    for name, kind in (
        ("user_asset_ids", asset_pb2.ASSET_KIND_USER),
        ("cloth_asset_ids", asset_pb2.ASSET_KIND_CLOTH),
    ):
        field = f"conversions.{name}"
        ids = assets.each_once(getattr(asked, name), field)
        wanted += [
            assets.Wanted(f"{field}[{number}]", str(each), kind) for number, each in enumerate(ids)
        ]
    found = await assets.check(peers, wanted)
    count = len(asked.user_asset_ids)
    await Consents(db).check(rules.CONVERSION_TASK, found[:count])
    pictures = [_Picture.of(each) for each in found]
    return ConversionPlan(
        pictures[:count],
        pictures[count:],
        [*asked.style_names] or [""],
        dict(scheduling(first_request(request))),
    )
