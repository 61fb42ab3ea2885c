"""With the vision models `local` sees who is in a picture, and says what it saw.

The models are optional: what needs them is left out, with the command that fetches them, where they
are missing.
"""

from collections.abc import Sequence
from importlib import util
from math import cos, radians, sin
from pathlib import Path

import pytest
import pyvips
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import job_pb2

from services.conversions.local import detections, vision, wearer
from services.conversions.local.closeup import close_up
from services.conversions.local.detections import Grid
from services.conversions.local.pose import Landmark, Pose, Region
from services.conversions.local.tryon import try_on
from shared.imaging import ImagingPool
from shared.rpc.protos import plain
from tests.conversions import flows
from tests.conversions import local_pictures as pictures
from tests.suite import ROOT, Suite

ASTRONAUT = Path(__file__).parent / "photos" / "astronaut.jpg"
FIGURE = ROOT / "examples" / "photos" / "figure.jpg"
JACKET = ROOT / "examples" / "photos" / "front.jpg"
FACE = (205, 75, 275, 165)  # left, top, right, bottom in the astronaut's photograph


@pytest.fixture(scope="session")
def models() -> Path:
    folder = ROOT / ".tools" / "vision"
    if util.find_spec("ai_edge_litert") is None or not folder.exists():
        pytest.skip("needs the vision models: make vision")
    return folder


def changed(path: Path, change: str) -> Path:
    """Writes the astronaut's photograph with a change."""
    image = pictures.pixels(ASTRONAUT)
    match change:
        case "two":
            image = image.join(image, "horizontal")
        case "the lower half":
            image = image.crop(0, 300, 512, 212)
        case "leaning":
            image = image.affine(
                [cos(radians(9)), -sin(radians(9)), sin(radians(9)), cos(radians(9))]
            )
    image.write_to_file(str(path), Q=92)
    return path


def test_a_real_photograph_without_a_backdrop_is_refused_without_models(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="border is not one even backdrop"):
        try_on(ASTRONAUT, pictures.garment(tmp_path / "cloth.jpg"), tmp_path / "out.jpg")


def test_it_is_dressed_by_its_pose(tmp_path: Path, models: Path) -> None:
    cloth, out = pictures.garment(tmp_path / "cloth.png", (30, 160, 60)), tmp_path / "out.png"
    result = try_on(ASTRONAUT, cloth, out, models=models)

    before, after = pictures.pixels(ASTRONAUT), pictures.pixels(out)
    left, top, right, bottom = FACE
    face = (left, top, right - left, bottom - top)
    assert (before.crop(*face).cast("float") - after.crop(*face)).abs().max() == 0
    red, green, _ = after(215, 330)
    assert green > 1.5 * red

    box = result.parameters["torso_box"]
    assert isinstance(box, dict)
    assert 0.35 < box["left"] + box["width"] / 2 < 0.5
    by_name = {item.name: item for item in result.evidence}
    assert {"pose", "people", "overlap", "garment_outline", "person_in_garment_photo"} <= set(
        by_name
    )
    assert by_name["person_in_garment_photo"].value == 1
    assert "person_separation" not in by_name
    assert 0.5 < result.confidence <= 0.85

    named = result.parameters["vision"]
    assert isinstance(named, dict)
    assert named["models"] == vision.SHA256
    assert str(named["runtime"]).startswith("ai-edge-litert ")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("two", "2 persons are in the picture"),
        ("the lower half", "no person was found in the picture"),
    ],
)
def test_whoever_cannot_be_dressed_is_refused_with_the_reason(
    tmp_path: Path, models: Path, change: str, reason: str
) -> None:
    cloth = pictures.garment(tmp_path / "cloth.jpg")
    with pytest.raises(ValueError, match=reason) as said:
        try_on(changed(tmp_path / "person.jpg", change), cloth, tmp_path / "out.jpg", models=models)
    assert "Send one person who faces the camera" in str(said.value)
    assert not (tmp_path / "out.jpg").exists()


def test_shoulders_that_are_hidden_or_turned_away_are_refused() -> None:
    def stands(shoulders: tuple[float, float], visible: float = 1.0) -> Pose:
        marks = [Landmark(0.5, 0.5, 1.0)] * 33
        marks[11:13] = [Landmark(x, 0.3, visible) for x in shoulders]
        marks[23:25] = [Landmark(0.55, 0.7, 1.0), Landmark(0.45, 0.7, 1.0)]
        region = Region((0.5, 0.5), 1.0, 0.0, 1.0)
        return Pose(tuple(marks), 0.9, pyvips.Image.black(256, 256), region)

    assert wearer.of(stands((0.62, 0.38)), 500, 500).turn == 0
    for shoulders, visible, reason in (
        ((0.55, 0.45), 1.0, "turned away"),
        ((0.62, 0.38), 0.4, "shoulders aren't visible"),
        ((1.2, 0.8), 1.0, "shoulders aren't visible"),
    ):
        with pytest.raises(ValueError, match=reason):
            wearer.of(stands(shoulders, visible), 500, 500)


def test_a_garment_leans_with_the_shoulders(tmp_path: Path, models: Path) -> None:
    cloth = pictures.garment(tmp_path / "cloth.jpg")
    turns = [
        try_on(
            changed(tmp_path / f"{change}.jpg", change), cloth, tmp_path / "o.png", models=models
        ).parameters["turn"]
        for change in ("upright", "leaning")
    ]
    assert float(str(turns[1])) - float(str(turns[0])) == pytest.approx(9, abs=2.5)


def test_a_person_in_the_garments_photograph_is_said(models: Path) -> None:
    photo = pictures.pixels(ASTRONAUT)
    assert wearer.worn(photo, models).value == 0.2
    assert "a person is in" in wearer.worn(photo, models).note
    assert wearer.worn(pictures.pixels(JACKET).thumbnail_image(800), models).value == 1


def test_a_close_up_is_not_drawn_to_a_face(tmp_path: Path, models: Path) -> None:
    drawn = close_up(ASTRONAUT, tmp_path / "drawn.jpg", size=400)
    left, top = int(str(drawn.parameters["left"])), int(str(drawn.parameters["top"]))
    assert left < FACE[0] < FACE[2] < left + 400
    assert top < FACE[1] < FACE[3] < top + 400

    kept = close_up(ASTRONAUT, tmp_path / "kept.jpg", size=160, models=models)
    assert kept.evidence[-1].name == "faces"
    assert kept.evidence[-1].note == "faces in the photograph: 1, in the crop: 0"

    given = close_up(ASTRONAUT, tmp_path / "given.jpg", at=(0.46, 0.22), size=160, models=models)
    assert given.evidence[-1].value == 1
    assert "in the crop: 1" in given.evidence[-1].note


@pytest.mark.long
async def test_it_fits_into_a_limited_child_and_gives_the_same_bytes_in_another(
    tmp_path: Path, models: Path
) -> None:
    outs = [tmp_path / f"{number}.jpg" for number in range(2)]
    for out in outs:
        pool = ImagingPool(workers=1)
        try:
            await pool.run(_dressed, FIGURE, JACKET, out, models, timeout=60)
        finally:
            await pool.close()
    assert outs[0].read_bytes() == outs[1].read_bytes()


def _dressed(person: Path, cloth: Path, out: Path, models: Path) -> float:
    return try_on(person, cloth, out, models=models).confidence


@pytest.mark.long
async def test_a_conversions_recipe_names_the_models(
    suite: Suite, tmp_path: Path, models: Path
) -> None:
    suite.overrides["vision_models"] = str(models)
    await flows.start(suite)
    ada = suite.client("ada")
    user = await flows.put(ada, ASTRONAUT, asset_pb2.ASSET_KIND_USER)
    cloth = await flows.cloth(ada, tmp_path)

    made = await flows.convert(ada, user, cloth, wait=True)
    assert made.state == job_pb2.JOB_STATE_COMPLETED, made.error_message
    named = plain(made.recipe.parameters)["vision"]
    assert named["models"] == vision.SHA256
    assert "pose" in {item.name for item in made.evidence}


def test_a_folder_without_the_models_is_refused_with_the_command(tmp_path: Path) -> None:
    assert vision.models_in("") is None
    with pytest.raises(vision.NotInstalled, match="make vision"):
        vision.models_in(str(tmp_path))


def test_a_file_that_is_another_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / vision.DETECT_FACES).write_bytes(b"another model")
    with pytest.raises(vision.NotInstalled, match="isn't the file that is known"):
        vision.content(tmp_path / vision.DETECT_FACES)
    with pytest.raises(vision.NotInstalled, match="can't be read"):
        vision.content(tmp_path / vision.DETECT_POSE)


def test_detections_are_placed_in_the_picture_and_the_surest_of_a_heap_stays() -> None:
    grid = Grid(100, ((2, 1),))
    assert grid.anchors() == [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]

    # Box and one point of each anchor, as offsets in pixels of the square.
    raw = [*(0, 0, 20, 40, 5, 5), *(-48, 0, 20, 40, 0, 0), *(0,) * 6, *(0, 0, 10, 10, 0, 0)]
    values = memoryview(_floats(raw)).cast("f")
    scores = memoryview(_floats([1.0, 3.0, -4.0, 0.5])).cast("f")
    sure, other = detections.read(grid, values, scores, 0.6, (200, 100))
    assert sure.score == pytest.approx(0.953, abs=0.001)
    assert sure.box == pytest.approx((0.17, -0.4, 0.2, 0.8))
    assert other.score == pytest.approx(0.622, abs=0.001)
    assert other.points[0][0] == 0.75


def _floats(values: Sequence[float]) -> bytes:
    from array import array

    return array("f", values).tobytes()
