import colorsys
import csv
import io
import os
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from PIL import Image

from actkit import demo
from actkit.demo.canvas import shapes, steps
from actkit.demo.drawing import draw, draw_scenes, pictures
from actkit.demo.person import HIPS
from actkit.demo.scenes import read_scene, vocabulary

ROWS = [row for row in demo.captions() if row["language"] == "english"]
PAIRS = list(zip(ROWS[::2], ROWS[1::2], strict=True))
SCENES = tomllib.loads(demo.CAPTIONS.with_name("scenes.toml").read_text(encoding="utf-8"))
TABLES = {
    "place": "places",
    "activity": "activities",
    "adjective": "adjectives",
    "clothes": "clothes",
    "time": "times",
    "detail": "details",
}
WORDS = {"male": ("man", "he", "his", "him", "himself"), "female": ("woman", "she", "her", "her", "herself")}
STANDING = "telling the pupils a story"
SITTING = "answering a visitor's questions"
CANVAS_WORDS = {"box", "oval", "cap", "cup", "poly", "line", "arc", "sky", "frame", "grid"}
# bounds of hue (degrees), saturation and brightness of each colour
COLOURS = {
    "red": ((345, 375), (0.6, 1), (0.5, 1)),
    "orange": ((15, 38), (0.75, 1), (0.8, 1)),
    "yellow": ((40, 65), (0.7, 1), (0.7, 1)),
    "green": ((90, 160), (0.4, 1), (0.3, 0.75)),
    "blue": ((205, 240), (0.6, 1), (0.4, 1)),
    "brown": ((10, 40), (0.6, 1), (0.3, 0.6)),
    "straw": ((38, 55), (0.4, 0.65), (0.8, 1)),
    "grey": ((0, 360), (0, 0.15), (0.35, 0.65)),
    "white": ((0, 360), (0, 0.04), (0.96, 1)),
    "black": ((0, 360), (0, 1), (0, 0.14)),
}
COLOURED = [clothes for clothes in vocabulary()["clothes"] if set(clothes.split()) & set(COLOURS)]


def spelled(phrase, gender):
    return re.sub(r"\[([^|]+)\|([^\]]+)\]", lambda match: match[1 + (gender == "female")], phrase)


def wearing(clothes="round glasses", *, gender="male", activity=STANDING, place="in an empty flat"):
    person, pronoun, *_ = WORDS[gender]
    return f"A {person} is {activity} {place}, and {pronoun} is wearing {clothes}."


def standing(time, place, gender="male"):
    person, pronoun, *_ = WORDS[gender]
    return f"A {person} is standing {place} {time}, and {pronoun} is {STANDING}."


def described(adjective, gender="male"):
    article = "An" if adjective[0] in "aeiou" else "A"
    _, _, his, him, _ = WORDS[gender]
    radio = f"with {his} radio playing near {him}"
    return f"{article} {adjective} {gender} teacher {STANDING} in an empty flat, {radio}."


def detailed(detail, gender="male"):
    person, pronoun, *_ = WORDS[gender]
    detail = spelled(detail, gender)
    return f"A photograph of a {person} at work: {pronoun} is {STANDING} in an empty flat, {detail}."


def pixels(text):
    return np.asarray(draw(text)).astype(int)


def count(image, colour):
    """Return the number of pixels of a colour, judged by hue and not by our palette."""
    (hue_low, hue_high), saturation, value = COLOURS[colour]
    shares = (colorsys.rgb_to_hsv(*(pixel / 255)) for pixel in image.reshape(-1, 3))
    return sum(
        any(hue_low <= hue * 360 + turn <= hue_high for turn in (0, 360))
        and saturation[0] <= s <= saturation[1]
        and value[0] <= v <= value[1]
        for hue, s, v in shares
    )


@pytest.mark.parametrize("field", TABLES)
def test_every_phrase_is_drawn_or_cannot_be(field):
    drawn, undrawn = set(pictures()[TABLES[field]]), set(pictures()["undrawn"])
    assert set(vocabulary()[field]) <= drawn | undrawn, "draw the new phrase in pictures.toml"
    assert drawn <= set(vocabulary()[field]), "scenes.toml has no such phrase any more"
    assert not drawn & undrawn


def test_what_cannot_be_drawn_is_in_the_vocabulary_and_every_posture_is_drawn():
    assert set(pictures()["undrawn"]) <= {phrase for phrases in vocabulary().values() for phrase in phrases}
    assert set(vocabulary()["posture"]) == set(HIPS)


def test_every_word_of_a_drawing_is_known():
    known = CANVAS_WORDS | set(shapes())
    drawings = [*shapes().values(), *map(steps, pictures()["places"].values())]
    drawings += map(steps, pictures()["activities"].values())
    for steps_of_one in drawings:
        words = {step.word for step in steps_of_one} | {s.repeated.word for s in steps_of_one if s.repeated}
        assert words <= known | {"inside", "outside", "front", "hand"}


def test_no_drawing_is_a_name_that_the_canvas_draws_itself():
    assert not set(shapes()) & CANVAS_WORDS


@pytest.mark.slow
def test_captions_are_read_back():
    templates = {template["name"]: template["english"] for template in SCENES["template"]}
    for row in ROWS + [row for row in demo.captions(1500)[4000:] if row["language"] == "english"]:
        scene = read_scene(row["text"])
        assert (scene.gender, scene.occupation) == (row["gender"], row["occupation"])
        for field in re.findall(r"{(\w+)}", templates[row["template"]]):
            phrase = scene.occupation if field == "noun" else getattr(scene, field)
            assert spelled(phrase, scene.gender).lower() in row["text"].lower()
        fields = {field for field in ("adjective", "clothes", "time", "detail") if getattr(scene, field)}
        assert fields == set(re.findall(r"{(adjective|clothes|time|detail)}", templates[row["template"]])) | (
            {"adjective"} if row["template"] == "youth" else set()
        )


@pytest.mark.parametrize(
    "text", ["", "A cat sits on a mat.", demo.captions(1)[1]["text"], ROWS[0]["text"] + " "]
)
def test_only_english_captions_are_drawn(text):
    with pytest.raises(ValueError, match="is not an English caption of the demo"):
        draw(text)


def test_a_row_is_drawn_as_its_text():
    assert draw(ROWS[0]) == draw(ROWS[0]["text"])


def test_the_same_caption_gives_the_same_bytes_in_another_process():
    code = (
        "import sys; from actkit.demo.drawing import draw;"
        "[draw(line.strip()).save(sys.stdout.buffer, 'PNG') for line in sys.stdin]"
    )
    texts = [row["text"] for row in ROWS[:20]]
    there = subprocess.run(
        [sys.executable, "-c", code],
        input="\n".join(texts).encode(),
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONUTF8": "1"},
    )
    here = io.BytesIO()
    for text in texts:
        draw(text).save(here, "PNG")
    assert there.stdout == here.getvalue()


@pytest.mark.parametrize("size", [1, 32, 96, 224])
def test_size(size):
    image = draw(ROWS[0], size=size)
    assert (image.size, image.mode) == ((size, size), "RGB")


def test_a_larger_picture_shows_the_same():
    small, large = draw(ROWS[0]), draw(ROWS[0], size=384).reduce(4)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(large)).mean() < 3


def test_no_size_is_refused():
    with pytest.raises(ValueError, match="size must be positive, got 0"):
        draw(ROWS[0], size=0)


def test_colours_are_asked_of_most_clothes():
    assert len(COLOURED) >= 10


@pytest.mark.parametrize("gender", WORDS)
@pytest.mark.parametrize("activity", [STANDING, SITTING])
@pytest.mark.parametrize("clothes", COLOURED)
def test_clothes_have_the_colour_that_the_caption_names(clothes, activity, gender):
    (colour,) = set(clothes.split()) & set(COLOURS)
    dressed = pixels(wearing(clothes, gender=gender, activity=activity))
    plain = pixels(wearing(gender=gender, activity=activity))
    assert count(dressed, colour) >= count(plain, colour) + 20


@pytest.mark.slow
@pytest.mark.parametrize("gender", WORDS)
@pytest.mark.parametrize(
    ("field", "caption"),
    [
        ("clothes", lambda phrase, gender: wearing(phrase, gender=gender)),
        pytest.param(
            "activity",
            lambda phrase, gender: wearing(activity=phrase, gender=gender),
            marks=pytest.mark.slow,
        ),
        ("place", lambda phrase, gender: wearing(place=phrase, gender=gender)),
        ("time", lambda phrase, gender: standing(phrase, "in an empty flat", gender)),
        ("time", lambda phrase, gender: standing(phrase, "in a green field", gender)),
        ("adjective", described),
        ("detail", detailed),
    ],
)
def test_every_drawn_phrase_can_be_seen(field, caption, gender):
    drawn = [pixels(caption(phrase, gender)) for phrase in pictures()[TABLES[field]]]
    undrawn = [pixels(caption(p, gender)) for p in vocabulary()[field] if p in pictures()["undrawn"]]
    for number, image in enumerate(drawn):
        for other in drawn[:number] + undrawn:
            assert (np.abs(image - other).max(axis=-1) > 40).sum() >= 5
    for image in undrawn:
        np.testing.assert_array_equal(image, undrawn[0])


@pytest.mark.parametrize("time", pictures()["times"])
def test_every_room_shows_the_time(time):
    for place, drawing in pictures()["places"].items():
        if drawing.startswith("inside"):
            shown, other = (pixels(standing(t, place)) for t in (time, "at the weekend"))
            assert (np.abs(shown - other).max(axis=-1) > 20).sum() >= 20, place


@pytest.mark.slow
def test_a_man_and_a_woman_differ_and_nothing_else_does():
    for man, woman in PAIRS:
        differs = np.abs(pixels(man) - pixels(woman)).max(axis=-1) > 0
        assert differs.sum() >= 100, man["text"]
        rows, columns = np.nonzero(differs)
        assert columns.min() >= 20, man["text"]
        assert columns.max() <= 54, man["text"]
        assert rows.min() >= 18, man["text"]


def test_scenes_are_written_with_their_pictures(tmp_path):
    path = draw_scenes(tmp_path / "new" / "folder", 12)
    assert path == tmp_path / "new" / "folder" / "captions.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    images = [row.pop("image") for row in rows]
    assert rows == demo.captions(12)
    assert b"\r" not in path.read_bytes()
    assert images[:4] == [
        f"images/scene-00000-{gender}.png" for gender in ("male", "male", "female", "female")
    ]
    assert {path.name for path in (path.parent / "images").iterdir()} == {i.partition("/")[2] for i in images}
    for row, name in zip(rows, images, strict=True):
        with Image.open(path.parent / name) as image:
            assert (image.size, image.mode, image.format) == ((96, 96), "RGB", "PNG")
            if row["language"] == "english":
                assert image.tobytes() == draw(row).tobytes()


def test_writing_scenes_again_changes_no_byte(tmp_path):
    def contents():
        draw_scenes(tmp_path, 3)
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    assert contents() == contents()
    assert len(contents()) == 7


def test_no_scenes(tmp_path):
    assert draw_scenes(tmp_path, 0).read_text(encoding="utf-8").strip().endswith(",image")


def test_importing_the_demo_needs_no_pillow():
    code = "import sys, actkit.demo; print('PIL' in sys.modules, callable(actkit.demo.draw_scenes))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "True"]


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(demo, "no_such_name")
