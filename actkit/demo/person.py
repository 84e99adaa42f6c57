"""Person in an image: outline and hair depend on the gender, clothes and face on the caption."""

import itertools
from collections.abc import Mapping
from typing import Any

from actkit.demo.canvas import Pen

X = 36
HIPS = {"standing": 33, "sitting": 24}
"""Height of the hips by posture; `X` is the horizontal position of the figure."""

HANDS = {"standing": (54.0, 45.0), "sitting": (53.0, 38.0)}
"""Default position of the right hand, unless the activity sets it."""

NEUTRAL: dict[str, Any] = {
    "top": "#a79ab0",
    "trousers": "#5b5566",
    "shoes": "#3d3844",
    "hands": "#d9a47c",
    "skin": "#d9a47c",
    "hair": "#5b3a24",
    "eyes": "oval #222 -3.2 31.6 -1.2 34.4; oval #222 2 31.6 4 34.4",
    "mouth": "line #8a3b2e 0.9 -1.4 28.4 2.4 28.4",
    "hem": 0,
    "width": 1,
    "back": "",
    "bands": "",
    "over": "",
    "standing": "",
    "sitting": "",
    "hand": "",
}
"""Default look of a person; the looks in pictures.toml replace parts of it.

`over` is drawn on the upper body and head, `back` behind them, `standing` or `sitting` on the lower body;
(0, 0) is between the hips, 23 units below the shoulders, and for `hand` it is the right hand. `bands` go
across the upper body: colour bottom top. `hem` is how far the upper garment falls below the hips.
"""

_TORSO = {
    "male": "-9.5 -2 -10.5 19 -8 23 -3 24.5 3 24.5 8 23 10.5 19 9.5 -2",
    "female": "-10 -3 -6 8 -8.5 19 -6.5 22.5 -3 24 3 24 6.5 22.5 8.5 19 6 8 10 -3",
}
_HAIR_BEHIND = {
    "male": "",
    "female": "oval * -10 24 10 43; poly * -10 34 -10.5 13 -4 15 4 15 10.5 13 10 34",
}
_HAIR = {
    "male": "cap * -7.8 29 7.8 43; box * -7.8 33 -6.4 37; box * 6.4 33 7.8 37",
    "female": "cap * -8.4 28.5 8.4 43; poly * -9.6 36 -9.8 15 -6.4 17 -6.2 36;"
    "poly * 9.6 36 9.8 15 6.4 17 6.2 36",
}
_LEGS = {"male": 7.5, "female": 6.3}


def looks(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Merge looks into the default one; drawings are concatenated, everything else is replaced."""
    look = dict(NEUTRAL)
    for part in parts:
        for name, value in part.items():
            adds = name in ("back", "over", "standing", "sitting", "hand") and look[name]
            look[name] = f"{look[name]}; {value}" if adds else value
    return look


def draw_body(pen: Pen, gender: str, posture: str, look: Mapping[str, Any]) -> None:
    """Draw a person without the right arm."""
    pen = pen.at(X, HIPS[posture], look["width"])
    pen.draw(look["back"])
    pen.draw(_HAIR_BEHIND[gender], look["hair"])
    if posture == "standing":
        _draw_standing_legs(pen, gender, look)
    else:
        _draw_sitting_legs(pen, gender, look)
    sleeve = look.get("sleeves", look["top"])
    pen.draw("line * 5 -8.4 20.5 -12 10 -11 1; oval * -11 18.4 -6 23.4", sleeve)
    pen.draw("oval * -13.4 -3 -8.6 2", look["hands"])
    pen.draw(f"poly * {_TORSO[gender]}", look["top"])
    pen.draw("line #0003 0.7 -8.4 17 -9.4 3" if gender == "male" else "line #0003 0.7 -7.4 16 -5.9 8 -8.6 -1")
    for band in look["bands"].split(";") if look["bands"] else ():
        colour, bottom, top = band.split()
        low, high = _half_width(gender, float(bottom)), _half_width(gender, float(top))
        pen.draw(f"poly {colour} {-low} {bottom} {low} {bottom} {high} {top} {-high} {top}")
    pen.draw("box * -2.4 22.5 2.4 27; oval * -7 25.5 7 40.5", look["skin"])
    pen.draw(f"{look['eyes']}; {look['mouth']}")
    pen.draw(_HAIR[gender], look["hair"])
    pen.draw(f"{look[posture]}; {look['over']}")


def draw_arm(pen: Pen, posture: str, look: Mapping[str, Any], hand: tuple[float, float]) -> None:
    """Draw the right arm, reaching to a point of the image."""
    x, y = hand[0] - X, hand[1] - HIPS[posture]
    # the elbow is below a lowered hand, and to the side of a raised one
    elbow = (8.5 + x) / 2 + (3 if y > 22 else 0), (20.5 + y) / 2 - (4 if y < 22 else 6)
    pen = pen.at(X, HIPS[posture])
    pen.draw("oval * 6 18.4 11 23.4", look.get("sleeves", look["top"]))
    pen.draw(f"line * 5 8.5 20.8 {elbow[0]} {elbow[1]} {x} {y}", look.get("sleeves", look["top"]))
    pen.draw(f"oval * {x - 2.5} {y - 2.5} {x + 2.5} {y + 2.5}", look["hands"])
    pen.at(x, y).draw(look["hand"])


def _draw_standing_legs(pen: Pen, gender: str, look: Mapping[str, Any]) -> None:
    leg = _LEGS[gender]
    pen.draw(f"box * {-leg} -22 -0.6 0; box * 0.6 -22 {leg} 0", look["trousers"])
    pen.draw(f"oval * {-leg - 1.6} -25 -0.4 -20.6; oval * 0.4 -25 {leg + 1.6} -20.6", look["shoes"])
    if hem := look["hem"]:
        flare = 13 if gender == "female" else 11
        pen.draw(f"poly * -9.5 -1 {-flare} {-hem} {flare} {-hem} 9.5 -1", look["top"])


def _draw_sitting_legs(pen: Pen, gender: str, look: Mapping[str, Any]) -> None:
    pen.draw("box #8a5a30 -13 -7 9 -4.6; box #8a5a30 -13 -16 -11 18; box #8a5a30 6 -16 8 -6")
    leg = _LEGS[gender]
    pen.draw(f"box * -8 -4.8 {9 + leg} {leg / 2 - 1}; box * 9 -13 {9 + leg} 0", look["trousers"])
    pen.draw(f"oval * 8.4 -16 {12 + leg} -11.6", look["shoes"])
    if look["hem"]:
        pen.draw(f"poly * -9.5 -1 -10 -8 -2 -5 13 -5 13 {leg / 2} 0 4", look["top"])


def _half_width(gender: str, height: float) -> float:
    """Return half the width of the upper body at a height."""
    numbers = list(map(float, _TORSO[gender].split()))
    corners = sorted((y, x) for x, y in zip(numbers[::2], numbers[1::2], strict=True) if x > 0)
    for (low, x_low), (high, x_high) in itertools.pairwise(corners):
        if height <= high:
            return x_low + (x_high - x_low) * max(0, height - low) / (high - low)
    return 0.0
