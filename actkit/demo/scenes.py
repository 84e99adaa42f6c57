"""Scenes parsed from English captions."""

import functools
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actkit.demo.captions import GENDERS

_SCENES = Path(__file__).with_name("scenes.toml")
_GENDERED = re.compile(r"\[([^|\]]+)\|([^|\]]+)\]")


@dataclass(frozen=True)
class Scene:
    """Phrases of a caption, as spelled in scenes.toml; empty for those that it lacks."""

    gender: str
    occupation: str
    posture: str
    activity: str
    place: str
    adjective: str = ""
    clothes: str = ""
    time: str = ""
    detail: str = ""


def read_scene(text: str) -> Scene:
    """Return the phrases that an English caption consists of.

    Parameters
    ----------
    text
        Caption from `actkit.demo.captions`.

    Raises
    ------
    ValueError
        If no template of scenes.toml yields this text.

    Examples
    --------
    >>> scene = read_scene("A woman is playing the oud on a small stage, and she is wearing a red coat.")
    >>> scene.gender, scene.occupation, scene.posture, scene.clothes
    ('female', 'musician', 'sitting', 'a red coat')
    """
    for gender, template in _templates():
        if match := template.fullmatch(text):
            phrases = {
                field: _spelled(field, gender)[phrase.lower()] for field, phrase in match.groupdict().items()
            }
            noun, posture = _actors()[phrases["activity"]]
            phrases.setdefault("posture", posture)
            return Scene(gender=gender, occupation=phrases.pop("noun", noun), **phrases)
    raise ValueError(f"is not an English caption of the demo: {text!r}")


@functools.cache
def vocabulary() -> dict[str, list[str]]:
    """Return the English phrases of scenes.toml by field, with their gender markup."""
    scenes = _scenes()
    jobs = scenes["occupation"]
    plain = {"adjective": "adjectives", "clothes": "clothes", "time": "times", "detail": "details"}
    return {
        "noun": [job["english"] for job in jobs],
        "posture": list(scenes["postures"]),
        "activity": [activity for job in jobs for _, activity, _ in job["activities"]],
        "place": [place for job in jobs for place, _ in job["places"]],
    } | {field: [english for english, _ in scenes[table]] for field, table in plain.items()}


@functools.cache
def _scenes() -> dict[str, Any]:
    return tomllib.loads(_SCENES.read_text(encoding="utf-8"))


@functools.cache
def _actors() -> dict[str, tuple[str, str]]:
    """Return the occupation and the posture that each activity belongs to."""
    return {
        activity: (job["english"], posture)
        for job in _scenes()["occupation"]
        for posture, activity, _ in job["activities"]
    }


@functools.cache
def _spelled(field: str, gender: str) -> dict[str, str]:
    """Return the phrases of a field by their lower-case spelling in captions of a gender."""
    return {_resolved(phrase, gender).lower(): phrase for phrase in vocabulary()[field]}


@functools.cache
def _templates() -> list[tuple[str, re.Pattern[str]]]:
    """Return a pattern for every English template and gender."""
    return [
        (gender, _pattern(template["english"], gender))
        for template in _scenes()["template"]
        for gender in GENDERS
    ]


def _pattern(template: str, gender: str) -> re.Pattern[str]:
    # one template contains "young" literally
    pattern = re.escape(_resolved(template, gender).replace("young", "{adjective}"))
    pattern = pattern.replace(re.escape("(n)"), "n?")
    for field in vocabulary():
        choices = "|".join(map(re.escape, _spelled(field, gender)))
        pattern = pattern.replace(re.escape(f"{{{field}}}"), f"(?P<{field}>{choices})")
    return re.compile(pattern, re.IGNORECASE)


def _resolved(text: str, gender: str) -> str:
    """Replace each [masculine|feminine] by the form of a gender."""
    return _GENDERED.sub(rf"\{GENDERS.index(gender) + 1}", text)
