"""Captions of imagined images: each scene with a man and with a woman, in English and in Arabic."""

from __future__ import annotations

import csv
import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = (
    "sample_id",
    "image_id",
    "scene",
    "language",
    "text",
    "gender",
    "occupation",
    "template",
    "split",
)
GENDERS = ("male", "female")
LANGUAGES = ("english", "arabic")
MOST_SCENES = 50_000
MOST_WORDS = 25

_SCENES = Path(__file__).with_name("scenes.toml")
_GENDERED = re.compile(r"\[([^|\]]+)\|([^|\]]+)\]")


def captions(n_scenes: int = 500) -> list[dict[str, str]]:
    """Caption `n_scenes` scenes, each as a male and a female image, in two languages.

    The rows are the same on every machine, and a longer list begins with the shorter one. No text occurs
    twice in a language, so held-out texts never occur in training.

    Parameters
    ----------
    n_scenes
        Number of scenes, at most 50,000. Every fifth one is held out.

    Returns
    -------
    list of dict
        Four rows per scene, with the columns `sample_id, image_id, scene, language, text, gender, occupation,
        template, split`. The two languages of an image share `image_id`; the male and the female image share
        `scene`.

    Raises
    ------
    ValueError
        If `n_scenes` is negative or more than the vocabulary allows.

    Examples
    --------
    >>> rows = captions(1)
    >>> [(row["gender"], row["language"]) for row in rows]
    [('male', 'english'), ('male', 'arabic'), ('female', 'english'), ('female', 'arabic')]
    """
    if not 0 <= n_scenes <= MOST_SCENES:
        raise ValueError(f"n_scenes must be 0 to {MOST_SCENES:,}, got {n_scenes:,}")
    vocabulary = tomllib.loads(_SCENES.read_text(encoding="utf-8"))
    rng = random.Random(0)  # noqa: S311  (reproducible, and not a secret)
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    scene = 0
    while scene < n_scenes:
        # complete rounds of all occupations keep them balanced for any n_scenes
        for occupation in rng.sample(vocabulary["occupation"], len(vocabulary["occupation"])):
            if scene == n_scenes:
                break
            template, texts = _new_scene(vocabulary, occupation, rng, seen)
            seen.update(texts.values())
            for (gender, language), text in texts.items():
                image_id = f"scene-{scene:05d}-{gender}"
                rows.append(
                    {
                        "sample_id": image_id,
                        "image_id": image_id,
                        "scene": f"scene-{scene:05d}",
                        "language": language,
                        "text": text,
                        "gender": gender,
                        "occupation": occupation["english"],
                        "template": template,
                        "split": "heldout" if scene % 5 == 4 else "train",
                    }
                )
            scene += 1
    return rows


def write_csv(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    r"""Write captions as UTF-8 CSV with "\n" line endings, with the same bytes on every system."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _new_scene(
    vocabulary: dict[str, Any], occupation: dict[str, Any], rng: random.Random, seen: set[str]
) -> tuple[str, dict[tuple[str, str], str]]:
    """Sample a template and phrases until the scene's four texts are short and new."""
    while True:
        template = rng.choice(vocabulary["template"])
        english, arabic = _phrases(vocabulary, occupation, rng)
        texts = {
            (gender, language): _sentence(template[language], phrases, gender)
            for gender in GENDERS
            for language, phrases in zip(LANGUAGES, (english, arabic), strict=True)
        }
        words = max(len(text.split()) for text in texts.values())
        if words <= MOST_WORDS and seen.isdisjoint(texts.values()):
            return template["name"], texts


def _phrases(
    vocabulary: dict[str, Any], occupation: dict[str, Any], rng: random.Random
) -> tuple[dict[str, str], dict[str, str]]:
    """Sample one phrase for every field that a template may have, in English and in Arabic."""
    posture, english_activity, arabic_activity = rng.choice(occupation["activities"])
    english = {"noun": occupation["english"], "posture": posture, "activity": english_activity}
    noun = occupation["arabic"]
    verb, _, direct_object = arabic_activity.partition(" ")
    arabic = {
        "noun": noun,
        "the_noun": noun.replace("[", "[ال").replace("|", "|ال"),
        "posture": vocabulary["postures"][posture],
        "activity": arabic_activity,
        "verb": verb,
        "object": direct_object,
    }
    for field, choices in (
        ("place", occupation["places"]),
        ("adjective", vocabulary["adjectives"]),
        ("clothes", vocabulary["clothes"]),
        ("time", vocabulary["times"]),
        ("detail", vocabulary["details"]),
    ):
        english[field], arabic[field] = rng.choice(choices)
    return english, arabic


def _sentence(template: str, phrases: dict[str, str], gender: str) -> str:
    """Fill a template, with the form of each [masculine|feminine] that matches the person."""
    text = _GENDERED.sub(rf"\{GENDERS.index(gender) + 1}", template.format_map(phrases))
    text = re.sub(r"\(n\) (?=[aeiou])", "n ", text).replace("(n)", "")
    return text[0].upper() + text[1:]
