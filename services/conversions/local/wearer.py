"""What a try-on needs to know of a person: whether it can be dressed, where its torso is, how it
leans, and what stays in front of a garment."""

from dataclasses import dataclass
from math import atan2, degrees, dist
from pathlib import Path

import pyvips

from services.conversions.local import faces, network, picture, pose
from services.conversions.local.body import Body
from services.conversions.local.evidence import Evidence, ramp
from services.conversions.local.pose import CERTAIN, Landmark, Pose

_NEXT = (
    "Send one person who faces the camera, alone in the picture, with both shoulders and the hips"
    " in it."
)
_BROAD = 1.28
"""Width of the trunk, in distances of the shoulder joints, by which a garment is sized."""
_ABOVE = 0.14
"""How far the shoulders' edge lies above the joints, in the same unit."""
_TURNED = 0.42
"""Least distance of the shoulder joints, in lengths of the torso: 0.56 to 0.75 for persons who face
the camera."""
_THICK = 0.17
"""Half the width of a forearm, in distances of the shoulder joints."""


@dataclass(frozen=True)
class Wearer:
    """body: in pixels of the mask. turn: degrees, clockwise, of the line of the shoulders. arms:
    forearms that lie before the torso, as lines x1, y1, x2, y2 in pixels of the mask. thick: half
    their width."""

    pose: Pose
    body: Body
    turn: float
    arms: tuple[tuple[float, float, float, float], ...]
    thick: float

    def evidence(self) -> tuple[Evidence, ...]:
        seen = min(_landmarks(self.pose, pose.SHOULDERS) + _landmarks(self.pose, pose.HIPS))
        return (
            Evidence(
                "pose",
                round(min(seen, ramp(self.pose.detected, 0.3, 0.6)), 3),
                0.3,
                f"shoulders and hips are visible with {seen:.2f}, the person with"
                f" {self.pose.detected:.2f}",
            ),
            Evidence("people", 1.0, 0.05, "one person in the picture"),
        )

    def in_front(self, width: int, height: int) -> pyvips.Image:
        """Returns where the forearms are in a mask of that size, 0..1."""
        shape = pyvips.Image.black(width, height).cast("float")
        for line in self.arms:
            near = pyvips.Image.sdf(width, height, "line", a=list(line[:2]), b=list(line[2:]))
            shape = (shape > 0).ifthenelse(shape, picture.clip((self.thick - near) + 0.5, 0, 1))
        return shape


def find(photo: pyvips.Image, models: Path, width: int, height: int) -> Wearer:
    """Finds the one person in a picture, with measures for a mask of width x height. Raises
    ValueError if there is none to dress, with the reason."""
    seen, found = faces.find(photo, models), pose.detect(photo, models)
    largest = max(map(pose.size, found), default=0.0)
    persons = sum(pose.size(each) > largest / 2 for each in found)
    widest = max((face.box[2] for face in seen), default=0.0)
    persons = max(persons, sum(face.box[2] > widest / 2 for face in seen) if found else 0)
    if persons > 1:
        raise ValueError(f"{persons} persons are in the picture. {_NEXT}")
    person = pose.of(photo, max(found, key=pose.size), models) if found else None
    network.release()
    if person is None:
        raise ValueError(f"no person was found in the picture. {_NEXT}")
    return of(person, width, height)


def worn(photo: pyvips.Image, models: Path) -> Evidence:
    """Returns evidence that a garment is photographed without a person in it."""
    seen, found = faces.find(photo, models), pose.detect(photo, models)
    network.release()
    surest = found[0].score if found else 0.0
    person = surest >= 0.8 or (surest >= CERTAIN and bool(seen))
    return Evidence(
        "person_in_garment_photo",
        0.2 if person else 1.0,
        0.05,
        (
            "a person is in the garment's photograph, and is pasted with it"
            if person
            else "the garment's photograph shows no person"
        ),
    )


def of(person: Pose, width: int, height: int) -> Wearer:
    """Measures a pose. Raises ValueError if it can't be dressed, with the reason."""
    shoulders = sorted(_points(person, pose.SHOULDERS, width, height))
    hips = sorted(_points(person, pose.HIPS, width, height))
    broad, middle, below = dist(*shoulders), _middle(*shoulders), _middle(*hips)
    length = dist(middle, below)
    if min(_landmarks(person, pose.SHOULDERS)) < CERTAIN or not all(
        0 <= x < width and 0 <= y < height for x, y in shoulders
    ):
        raise ValueError(f"the person's shoulders aren't visible. {_NEXT}")
    if min(_landmarks(person, pose.HIPS)) >= CERTAIN and broad < _TURNED * length:
        raise ValueError(f"the person is turned away from the camera. {_NEXT}")
    mouth = _middle(*_points(person, pose.MOUTH, width, height))
    (x1, y1), (x2, y2) = shoulders
    body = Body(
        shoulder=round(middle[1] - _ABOVE * broad),
        hem=min(height, round(below[1])),
        width=_BROAD * broad,
        span=0.0,
        centre=middle[0],
        neck=round(mouth[1] + 0.6 * (middle[1] - mouth[1])),
        apart=1.0,
    )
    lap = (
        hips[0][0] - 0.12 * broad,
        middle[1],
        hips[1][0] + 0.12 * broad,
        below[1] + 0.15 * length,
    )
    arms = tuple(_forearms(person, width, height, lap))
    return Wearer(person, body, round(degrees(atan2(y2 - y1, x2 - x1)), 2), arms, _THICK * broad)


def _forearms(
    person: Pose, width: int, height: int, box: tuple[float, float, float, float]
) -> list[tuple[float, float, float, float]]:
    """Returns forearms and hands whose wrist lies before the torso: with arms that hang down, the
    sleeves are in front."""
    lines = []
    for side in (0, 1):
        elbow, wrist, hand = (
            _points(person, pair, width, height)[side]
            for pair in (pose.ELBOWS, pose.WRISTS, pose.HANDS)
        )
        inside = box[0] < wrist[0] < box[2] and box[1] < wrist[1] < box[3]
        if inside and _landmarks(person, pose.WRISTS)[side] >= CERTAIN:
            lines += [(*elbow, *wrist), (*wrist, *hand)]
    return lines


def _landmarks(person: Pose, pair: tuple[int, int]) -> tuple[float, float]:
    return person.landmarks[pair[0]].visible, person.landmarks[pair[1]].visible


def _points(
    person: Pose, pair: tuple[int, int], width: int, height: int
) -> list[tuple[float, float]]:
    def placed(landmark: Landmark) -> tuple[float, float]:
        return landmark.x * width, landmark.y * height

    return [placed(person.landmarks[number]) for number in pair]


def _middle(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return (one[0] + other[0]) / 2, (one[1] + other[1]) / 2
