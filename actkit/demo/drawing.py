"""Images of the captions, drawn from simple shapes: a person, an activity, a place and a time."""

import csv
import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from actkit.demo.canvas import Pen, Step, steps
from actkit.demo.captions import COLUMNS, captions
from actkit.demo.person import HANDS, draw_arm, draw_body, looks
from actkit.demo.scenes import Scene, read_scene

_PICTURES = Path(__file__).with_name("pictures.toml")
_FINER = 4
_HORIZON = 38
_FLOOR = 30
_WINDOW = (4, 60, 26, 90)
_SKY = (100, 62)
_SKY_OF_A_SMALL_WINDOW = 40
_SOME_TIME = {"sky": "sky #d3e3ee #eef4f7 0 0 100 62"}


def draw(row: str | Mapping[str, str], *, size: int = 96) -> Image.Image:
    """Draw the scene of a caption.

    The same caption always gives the same pixels. Details that it does not mention are drawn alike in all
    images, and the images of a man and a woman differ only in the person.

    Parameters
    ----------
    row
        An English caption, or a row of `actkit.demo.captions` that holds one.
    size
        Width and height, in pixels.

    Raises
    ------
    ValueError
        If the text is not an English caption of the demo, or the size is not positive.

    Examples
    --------
    >>> draw("A man is playing the oud on a small stage, and he is wearing a red coat.").size
    (96, 96)
    """
    if size < 1:
        raise ValueError(f"size must be positive, got {size}")
    scene = read_scene(row if isinstance(row, str) else row["text"])
    image = Image.new("RGB", (size * _FINER, size * _FINER))
    unit = size * _FINER / 100
    _draw_scene(Pen(ImageDraw.Draw(image, "RGBA"), 0, size * _FINER, unit, unit), scene)
    return image.reduce(_FINER)


def draw_scenes(folder: Path, n_scenes: int = 500) -> Path:
    """Write the captions of the demo with an image for each scene and gender.

    Parameters
    ----------
    folder
        Folder for ``captions.csv``, with the columns of `actkit.demo.captions` and `image`, the path of the
        image below the folder, and for the images in ``images``. Existing files of these names are
        overwritten.
    n_scenes
        Number of scenes, as for `actkit.demo.captions`; each has two images.

    Returns
    -------
    Path
        The CSV file.
    """
    folder = Path(folder)
    rows = [row | {"image": f"images/{row['image_id']}.png"} for row in captions(n_scenes)]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for row in rows:
        if row["language"] == "english":
            draw(row).save(folder / row["image"])
    path = folder / "captions.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, (*COLUMNS, "image"), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


@functools.cache
def pictures() -> dict[str, Any]:
    """Return the drawings of every phrase, from pictures.toml."""
    return tomllib.loads(_PICTURES.read_text(encoding="utf-8"))


def _draw_scene(pen: Pen, scene: Scene) -> None:
    """Draw a scene from the sky to the things in front of the person."""
    mentioned = [
        pictures()[table].get(phrase, {})
        for table, phrase in (
            ("adjectives", scene.adjective),
            ("clothes", scene.clothes),
            ("details", scene.detail),
        )
    ]
    look = looks(*({k: v for k, v in part.items() if k not in ("behind", "front")} for part in mentioned))
    activity = steps(pictures()["activities"][scene.activity])
    hand = HANDS[scene.posture]
    if activity[0].word == "hand":
        hand, activity = (activity[0].numbers[0], activity[0].numbers[1]), activity[1:]
    foreground = _draw_place(pen, steps(pictures()["places"][scene.place]), scene.time)
    for part in mentioned:
        pen.draw(part.get("behind", ""))
    draw_body(pen, scene.gender, scene.posture, look)
    pen.draw(activity)
    draw_arm(pen, scene.posture, look, hand)
    pen.draw(foreground)
    for part in mentioned:
        pen.draw(part.get("front", ""))


def _draw_place(pen: Pen, place: tuple[Step, ...], time: str) -> tuple[Step, ...]:
    """Draw a place at a time of day or year, and return the steps in front of the person."""
    ground, *things = place
    words = [step.word for step in things]
    end = words.index("front") if "front" in words else len(words)
    sky = pictures()["times"].get(time, _SOME_TIME)
    if ground.word == "outside":
        pen.at(0, _HORIZON).draw(sky["sky"])
        pen.draw(f"box {ground.colours[0]} 0 0 100 {_HORIZON}")
        pen.draw(tuple(things[:end]))
        pen.draw(sky.get("over", ""))
    else:
        _draw_room(pen, ground, sky["sky"])
        pen.draw(tuple(things[:end]))
    return tuple(things[end + 1 :])


def _draw_room(pen: Pen, ground: Step, sky: str) -> None:
    """Draw a wall around a window to the sky, and a floor."""
    wall, floor = ground.colours
    left, bottom, right, top = ground.numbers or _WINDOW
    shown = _SKY[0] if right - left > _SKY[0] / 2 else _SKY_OF_A_SMALL_WINDOW
    pen.at(left, bottom, (right - left) / shown, (top - bottom) / _SKY[1]).draw(sky)
    pen.draw(
        f"box * 0 {_FLOOR} {left} 100; box * {right} {_FLOOR} 100 100;"
        f"box * 0 {_FLOOR} 100 {bottom}; box * 0 {top} 100 100",
        wall,
    )
    pen.draw(f"frame #8a6a4a {left} {bottom} {right} {top}; box {floor} 0 0 100 {_FLOOR}")
    pen.draw(f"line #0003 0.8 0 {_FLOOR} 100 {_FLOOR}")
