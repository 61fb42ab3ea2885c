"""Everyone reads the style catalogue and operators write it; its versions never change."""

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from atelier.assets.v1 import asset_pb2, style_pb2, style_pb2_grpc

from tests import calls
from tests.assets import flows
from tests.suite import ROOT, Client, Suite, browser

CODE = grpc.StatusCode


def stub(client: Client) -> Any:
    return client.stub(style_pb2_grpc.StyleServiceStub)


async def put(
    client: Client, slug: str, *images: tuple[str, str], **fields: Any
) -> style_pb2.PutStyleResponse:
    """Puts a style; `images` are (asset id, room type)."""
    named = [{"asset_id": asset_id, "room_type": room_type} for asset_id, room_type in images]
    request = style_pb2.PutStyleRequest(slug=slug, images=named, **{"name": slug.title(), **fields})
    answer: style_pb2.PutStyleResponse = await stub(client).PutStyle(request)
    return answer


async def get(client: Client, slug: str, **fields: Any) -> style_pb2.Style:
    style: style_pb2.Style = (
        await stub(client).GetStyle(style_pb2.GetStyleRequest(slug=slug, **fields))
    ).style
    return style


async def picture(client: Client, seed: int = 1, **fields: Any) -> str:
    asset = await flows.upload(
        client, flows.jpeg(96, 64, seed), kind=asset_pb2.ASSET_KIND_STYLE, **fields
    )
    return str(asset.id)


@pytest.fixture
def operator(caller: Callable[..., Client]) -> Client:
    return caller("admin")


@pytest.fixture
def slug(operator: Client) -> str:
    """A slug that no other test has."""
    return f"style-{operator.subject}"


async def test_everyone_reads_what_the_operator_wrote(
    operator: Client, caller: Callable[..., Client], slug: str
) -> None:
    kitchen, hall = [await picture(operator, seed) for seed in (1, 2)]
    written = await put(
        operator,
        slug,
        (kitchen, "kitchen"),
        (hall, "hall"),
        (kitchen, ""),
        description="Oak and linen.",
        room_types=["kitchen", "hall"],
        palette=["oak", "sage"],
    )

    assert written.changed and written.style.version_number == 1
    for role in ("user", "vendor", "anonymous", "admin"):
        seen = await get(caller(role), slug, include_urls=True)
        assert (
            seen.name,
            seen.description,
            list(seen.room_types),
            list(seen.palette),
            seen.latest,
        ) == (slug.title(), "Oak and linen.", ["kitchen", "hall"], ["oak", "sage"], True)
        assert [(image.asset_id, image.room_type) for image in seen.images] == [
            (kitchen, "kitchen"),
            (hall, "hall"),
            (kitchen, ""),
        ]

        async with browser() as http:
            answer = await http.get(seen.images[0].image_url)
        assert hashlib.sha256(answer.content).hexdigest() == seen.images[0].sha256
        assert "immutable" in answer.headers["cache-control"]
        assert [
            image.asset_id for image in (await get(caller(role), slug, room_type="hall")).images
        ] == [hall]


@pytest.mark.parametrize("role", ["user", "vendor", "anonymous"])
async def test_only_operators_write(caller: Callable[..., Client], slug: str, role: str) -> None:
    request = style_pb2.FindStylePicturesRequest(sha256s=["0" * 64])
    await calls.refused(put(caller(role), slug), CODE.PERMISSION_DENIED)
    await calls.refused(stub(caller(role)).FindStylePictures(request), CODE.PERMISSION_DENIED)
    await calls.refused(get(caller(role), slug), CODE.NOT_FOUND)


async def test_a_change_is_a_new_version_and_the_same_is_none(
    suite: Suite, operator: Client, slug: str
) -> None:
    one, two = [await picture(operator, seed) for seed in (1, 2)]
    changes: list[dict[str, Any]] = [
        {},
        {"description": "x"},
        {"description": "x", "palette": ["oak"]},
        {"description": "x", "palette": ["oak"], "room_types": ["hall"]},
    ]
    for number, fields in enumerate(changes, 1):
        for changed in (True, False):
            answer = await put(operator, slug, (one, ""), (two, ""), **fields)
            assert (answer.style.version_number, answer.changed) == (number, changed)
    assert (
        await put(operator, slug, (two, ""), (one, ""), **changes[-1])
    ).style.version_number == 5

    old = await get(operator, slug, version_number=2)
    assert (old.description, list(old.palette), old.latest, len(old.images)) == ("x", [], False, 2)
    await calls.refused(get(operator, slug, version_number=6), CODE.NOT_FOUND)

    versions = await stub(operator).ListStyleVersions(
        style_pb2.ListStyleVersionsRequest(slug=slug, page_size=3)
    )
    assert [style.version_number for style in versions.styles] == [5, 4, 3]

    further = style_pb2.ListStyleVersionsRequest(
        slug=slug, page_size=3, page_token=versions.next_page_token
    )
    assert [s.version_number for s in (await stub(operator).ListStyleVersions(further)).styles] == [
        2,
        1,
    ]

    held = suite.sql(
        "SELECT asset_id::text FROM assets.asset_references WHERE holder = %s",
        (f"assets/styles/{slug}",),
    )
    assert {asset_id for (asset_id,) in held} == {one, two}


async def test_thirty_two_writers_make_versions_without_gaps(operator: Client, slug: str) -> None:
    made = await asyncio.gather(*(put(operator, slug, description=str(n)) for n in range(32)))
    assert sorted(each.style.version_number for each in made) == list(range(1, 33))
    same = await asyncio.gather(*(put(operator, slug, description="same") for _ in range(8)))
    assert sorted(each.changed for each in same) == [False] * 7 + [True]


async def test_a_version_that_was_overtaken_is_not_written_over(
    operator: Client, slug: str
) -> None:
    for number in (0, 1):
        await put(operator, slug, description=str(number), expected_version=number)
    refusal = await calls.refused(
        put(operator, slug, description="late", expected_version=1), CODE.ABORTED
    )
    assert refusal.reason == "ETAG_MISMATCH"
    refusal = await calls.refused(put(operator, f"{slug}-new", expected_version=1), CODE.ABORTED)
    assert refusal.reason == "ETAG_MISMATCH"
    await calls.refused(get(operator, f"{slug}-new"), CODE.NOT_FOUND)


async def test_another_operator_with_another_owner_cannot_write_over_it(
    operator: Client, caller: Callable[..., Client], slug: str
) -> None:
    mine = await picture(operator)
    await put(operator, slug, (mine, ""))
    refusal = await calls.refused(put(caller("admin"), slug), CODE.ALREADY_EXISTS)
    assert refusal.reason == "ALREADY_EXISTS"
    await calls.refused(put(caller("admin"), f"{slug}-x", (mine, "")), CODE.NOT_FOUND)
    assert (await get(operator, slug)).version_number == 1


async def test_lists_filter_by_room_and_word_and_page(
    operator: Client, ada: Client, slug: str
) -> None:
    word = f"word-{slug}"
    shown = await picture(operator)
    for number, rooms in enumerate((["kitchen"], ["hall"], [], ["kitchen", "hall"])):
        await put(operator, f"{slug}-{number}", (shown, ""), room_types=rooms, palette=[word])

    async def listed(**fields: Any) -> list[str]:
        found, token = [], ""
        while True:
            request = style_pb2.ListStylesRequest(
                page_size=3, page_token=token, include_urls=True, **fields
            )
            answer = await stub(ada).ListStyles(request)
            assert all(
                style.images[0].image_url for style in answer.styles if style.slug.startswith(slug)
            )
            found += [style.slug.removeprefix(f"{slug}-") for style in answer.styles]
            if not (token := answer.next_page_token):
                return found

    assert await listed(palette_word=word) == ["3", "2", "1", "0"]
    assert await listed(palette_word=word, room_type="kitchen") == ["3", "2", "0"]
    assert await listed(palette_word=word, room_type="' OR true --") == ["2"]
    assert await listed(palette_word="%") == []


async def test_pictures_must_be_ready_public_ones_of_the_catalogue(
    suite: Suite, operator: Client, slug: str
) -> None:
    private = await picture(operator, visibility=asset_pb2.VISIBILITY_PRIVATE)
    request = flows.declaration(flows.jpeg(64, 48), kind=asset_pb2.ASSET_KIND_STYLE)
    pending = (await flows.announce(operator, flows.jpeg(64, 48), kind=request.kind)).asset.id
    trashed, other = [await picture(operator, seed) for seed in (5, 6)]
    await suite.change(
        "UPDATE assets.assets SET deleted_at = now(), expires_at = now() WHERE id = %s", (trashed,)
    )
    await suite.change("UPDATE assets.assets SET kind = 'photo' WHERE id = %s", (other,))

    for asset_id, code in (
        (private, CODE.FAILED_PRECONDITION),
        (pending, CODE.FAILED_PRECONDITION),
        (trashed, CODE.FAILED_PRECONDITION),
        (other, CODE.INVALID_ARGUMENT),
        (flows.request_id(), CODE.NOT_FOUND),
    ):
        await calls.refused(put(operator, slug, (asset_id, "")), code)
    await calls.refused(get(operator, slug), CODE.NOT_FOUND)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"slug": "Warm"}, "slug"),
        ({"slug": ""}, "slug"),
        ({"slug": "a--b"}, "slug"),
        ({"slug": "a/b"}, "slug"),
        ({"name": ""}, "name"),
        ({"palette": ["oak", "oak"]}, "palette"),
        ({"room_types": [""]}, "room_types[0]"),
        ({"images": [{"asset_id": "x"}]}, "images[0].asset_id"),
        (
            {
                "images": [{"asset_id": flows.request_id(), "room_type": "attic"}],
                "room_types": ["hall"],
            },
            "images[0].room_type",
        ),
    ],
)
async def test_a_style_that_breaks_a_rule_is_refused(
    operator: Client, fields: dict[str, Any], path: str
) -> None:
    request = style_pb2.PutStyleRequest(**{"slug": "any", "name": "Any", **fields})
    refusal = await calls.refused(stub(operator).PutStyle(request), CODE.INVALID_ARGUMENT)
    assert refusal.fields == [path]


# Seeding


@dataclass
class Seeder:
    """Runs `atelier styles seed` against the suite as one operator."""

    suite: Suite
    operator: Client
    folder: Path
    slug: str

    def write(self, *styles: dict[str, Any], name: str = "manifest.yaml") -> Path:
        path = self.folder / name
        said = {"styles": list(styles)}
        path.write_text(json.dumps(said) if name.endswith("json") else yaml.safe_dump(said))
        return path

    async def run(self, manifest: Path, address: str = "") -> tuple[int, str]:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
            "ATELIER_TOKEN": self.operator.token or "",
            "COLUMNS": "200",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "cli",
            "styles",
            "seed",
            str(manifest),
            "--address",
            address or self.suite.addresses["assets"],
            env=environment,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    def counts(self) -> tuple[int, int]:
        """Returns the number of pictures and of versions of this operator."""
        owner = f"admin:{self.operator.subject}"
        [(assets,)] = self.suite.sql(
            "SELECT count(*) FROM assets.assets WHERE owner = %s AND state = 'ready'", (owner,)
        )
        [(versions,)] = self.suite.sql(
            "SELECT count(*) FROM assets.style_versions WHERE owner = %s", (owner,)
        )
        return assets, versions


@pytest.fixture
def seeder(suite: Suite, operator: Client, tmp_path: Path, slug: str) -> Seeder:
    for seed in (1, 2, 3):
        (tmp_path / f"{seed}.jpg").write_bytes(flows.jpeg(96, 64, seed))
    (tmp_path / "copy-of-1.jpg").write_bytes(flows.jpeg(96, 64, 1))
    return Seeder(suite, operator, tmp_path, slug)


def described(slug: str, *files: str, **fields: Any) -> dict[str, Any]:
    images = [{"file": file, "room_type": "kitchen", "caption": file} for file in files]
    return {"slug": slug, "name": slug, "room_types": ["kitchen"], "images": images, **fields}


@pytest.mark.long
async def test_seeding_twice_changes_nothing_and_only_what_changed_is_new(
    seeder: Seeder, ada: Client
) -> None:
    first, second = (
        described(f"{seeder.slug}-a", "1.jpg", "2.jpg"),
        described(f"{seeder.slug}-b", "copy-of-1.jpg"),
    )
    code, said = await seeder.run(seeder.write(first, second))
    assert code == 0 and said.count("uploaded") == 2 and said.count("version 1, new") == 2, said
    assert seeder.counts() == (2, 2)

    code, said = await seeder.run(seeder.write(first, second, name="manifest.json"))
    assert code == 0 and said.count("version 1, as it was") == 2 and "uploaded" not in said, said
    assert seeder.counts() == (2, 2)

    second["images"].append({"file": "3.jpg"})
    code, said = await seeder.run(seeder.write(first, second))
    assert code == 0 and "-a: version 1, as it was" in said and "-b: version 2, new" in said, said
    assert seeder.counts() == (3, 3)

    style = await get(ada, f"{seeder.slug}-b")
    assert [image.sha256 for image in style.images] == [
        hashlib.sha256(flows.jpeg(96, 64, seed)).hexdigest() for seed in (1, 3)
    ]


@pytest.mark.long
async def test_an_interrupted_seeding_goes_on(seeder: Seeder) -> None:
    good = described(f"{seeder.slug}-a", "1.jpg", "2.jpg")
    bad = described(f"{seeder.slug}-b", "3.jpg", room_types=["hall"])
    code, said = await seeder.run(seeder.write(good, bad))
    assert code == 1 and "room_type" in said and "again" not in said, said
    assert seeder.counts() == (3, 1)
    bad["room_types"].append("kitchen")
    code, said = await seeder.run(seeder.write(good, bad))
    assert code == 0 and "uploaded" not in said and seeder.counts() == (3, 2), said


async def test_a_picture_that_is_refused_is_named(seeder: Seeder) -> None:
    (seeder.folder / "cut.jpg").write_bytes(flows.jpeg(640, 480)[:-2000])
    code, said = await seeder.run(seeder.write(described(f"{seeder.slug}-a", "1.jpg", "cut.jpg")))
    assert code == 1 and "cut.jpg: The file is damaged" in said, said


@pytest.mark.long
async def test_two_seedings_at_once_end_as_one(seeder: Seeder) -> None:
    manifest = seeder.write(described(f"{seeder.slug}-a", "1.jpg", "2.jpg"))
    for code, said in await asyncio.gather(seeder.run(manifest), seeder.run(manifest)):
        assert code == 0, said
    assert seeder.counts() == (2, 1)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("styles: 3", "styles:"),
        ("[", "not readable as YAML"),
        ("[" * 5000, "nested more than 8 deep"),
        ("styles: [{slug: a, name: b, name: c}]", "'name' is given twice"),
        ("other: []", "styles:"),
        ("styles: [3]", "styles[0]"),
        ("styles: [{slug: a}]", "name"),
        ("styles: [{slug: a, name: b, nmae: c}]", "styles[0]: nmae: there is no such field"),
        ("styles: [{slug: Not A Slug, name: b, images: [{file: 1.jpg}]}]", "styles[0].slug"),
        ("styles: [{slug: a, name: b, palette: [oak, oak]}]", "styles[0].palette"),
        ("styles: [{slug: a, name: b}, {slug: a, name: c}]", "twice"),
        ("styles: [{slug: a, name: b, images: [{file: gone.jpg}]}]", "gone.jpg"),
        ("styles: [{slug: a, name: b, images: {}}]", "expected a list"),
        ("styles: [{slug: a, name: b, images: false}]", "expected a list"),
        ("styles: [{slug: a, name: b, images: [{file: manifest.yaml}]}]", "not a picture"),
        ('styles: [{slug: a, name: b, images: [{file: "a\\0b"}]}]', "no file can have that name"),
        ('styles: [{slug: a, name: b, images: [{file: "\\ud800"}]}]', "not readable as YAML"),
        ("styles: [{slug: a, name: 2026-02-30}]", "not readable as YAML"),
        ("styles: [{slug: a, name: b, images: [{caption: x}]}]", "file"),
        ("styles: [{slug: a, name: b, images: [{file: 1.jpg, room: x}]}]", "room"),
    ],
)
def test_a_manifest_that_cannot_be_used_says_where(seeder: Seeder, content: str, word: str) -> None:
    from cli.styles import Unusable, read_manifest

    manifest = seeder.folder / "manifest.yaml"
    manifest.write_text(content)
    with pytest.raises(Unusable, match=r".") as refused:
        read_manifest(manifest)
    assert word in str(refused.value)
    assert seeder.counts() == (0, 0)


async def test_a_service_that_is_away_is_told_in_one_line(seeder: Seeder) -> None:
    code, said = await seeder.run(seeder.write(described("a", "1.jpg")), address="127.0.0.1:1")
    assert code == 1 and "Traceback" not in said and "nothing answers at 127.0.0.1:1" in said
