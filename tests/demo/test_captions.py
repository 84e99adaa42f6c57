import csv
import itertools
import re
import subprocess
import sys
import tomllib
from collections import Counter

import pytest

from actkit import demo
from actkit.demo.captions import COLUMNS, GENDERS, LANGUAGES, write_csv

ROWS = demo.captions()
VOCABULARY = tomllib.loads(demo.CAPTIONS.with_name("scenes.toml").read_text(encoding="utf-8"))
ENGLISH_WORDS = {
    "male": {"he", "his", "him", "man", "male"},
    "female": {"she", "her", "woman", "female"},
}
# irregular forms; every other feminine noun and adjective must end in ة
OTHER_FEMININES = {"شقراء", "واثقة من نفسها"}


def words(text):
    return re.findall(r"[^\W\d_]+(?:[\u064b-\u0652]\w*)*", text.lower())


def strings(node):
    if isinstance(node, str):
        yield node
    else:
        children = node.values() if isinstance(node, dict) else node
        yield from itertools.chain.from_iterable(map(strings, children))


def gendered_pairs():
    """Return all [masculine|feminine] pairs of the Arabic vocabulary, found without the generator."""
    for text in strings(VOCABULARY):
        if re.search("[\u0600-\u06ff]", text):
            yield from re.findall(r"\[([^|\]]+)\|([^|\]]+)\]", text)


def lexicon():
    """Return the Arabic words that reveal the gender: those on one side of the pairs but not on the other."""
    male, female = (
        {word for side in sides for word in words(side)} for sides in zip(*gendered_pairs(), strict=True)
    )
    return {"male": male - female, "female": female - male}


def spoken(word):
    """Return a word with and without the prefixes that Arabic attaches to it."""
    bare = word.removeprefix("و")
    return {word, bare, bare.removeprefix("ال")}


def by(rows, *columns):
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in columns), []).append(row)
    return groups


def test_columns_and_counts():
    assert all(tuple(row) == COLUMNS for row in ROWS)
    assert len(ROWS) == 2000
    assert set(Counter((row["language"], row["gender"]) for row in ROWS).values()) == {500}
    assert len({row["occupation"] for row in ROWS}) >= 30
    assert len({row["template"] for row in ROWS}) == len(VOCABULARY["template"])
    assert all(6 <= len(row["text"].split()) <= 25 for row in ROWS)


def test_a_scene_is_two_images_and_an_image_two_captions():
    for rows in by(ROWS, "scene").values():
        pairs = [(row["gender"], row["language"]) for row in rows]
        assert pairs == list(itertools.product(GENDERS, LANGUAGES))
        assert len({(row["occupation"], row["template"], row["split"]) for row in rows}) == 1
    for rows in by(ROWS, "image_id").values():
        assert {row["language"] for row in rows} == set(LANGUAGES)
        assert {row["sample_id"] for row in rows} == {rows[0]["image_id"]}
    assert len(by(ROWS, "sample_id", "language")) == len(ROWS)


def test_no_text_occurs_twice_and_a_fifth_of_the_scenes_is_held_out():
    many = demo.captions(3000)
    assert len(by(many, "language", "text")) == len(many)
    assert Counter(row["split"] for row in ROWS) == {"train": 1600, "heldout": 400}


def test_a_longer_list_begins_with_the_shorter():
    assert demo.captions(501)[:2000] == ROWS
    assert demo.captions(0) == []


@pytest.mark.parametrize("n_scenes", [-1, 50_001])
def test_impossible_numbers_of_scenes_are_refused(n_scenes):
    with pytest.raises(ValueError, match="n_scenes must be 0 to 50,000"):
        demo.captions(n_scenes)


def test_the_csv_is_what_the_generator_gives(tmp_path):
    write_csv(ROWS, tmp_path / "captions.csv")
    assert demo.CAPTIONS.read_bytes() == (tmp_path / "captions.csv").read_bytes()
    with demo.CAPTIONS.open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == ROWS


def test_nothing_of_the_markup_is_left():
    assert not [row["text"] for row in ROWS if re.search(r"[\[\]|{}()]|  ", row["text"])]


@pytest.mark.parametrize("gender", GENDERS)
def test_english_tells_one_gender(gender):
    (other,) = set(GENDERS) - {gender}
    for row in ROWS:
        if (row["language"], row["gender"]) == ("english", gender):
            caption_words = set(words(row["text"]))
            assert caption_words & ENGLISH_WORDS[gender], row["text"]
            assert not caption_words & ENGLISH_WORDS[other], row["text"]


@pytest.mark.parametrize("gender", GENDERS)
def test_arabic_tells_one_gender_in_noun_and_verb(gender):
    (other,) = set(GENDERS) - {gender}
    telling = lexicon()
    for row in demo.captions(2000):
        if (row["language"], row["gender"]) == ("arabic", gender):
            caption_words = set().union(*map(spoken, words(row["text"])))
            assert len(caption_words & telling[gender]) >= 2, row["text"]
            assert not caption_words & telling[other], row["text"]


def test_arabic_verbs_agree():
    for occupation in VOCABULARY["occupation"]:
        for _, _, arabic in occupation["activities"]:
            male, female = re.match(r"\[(\w+)\|(\w+)\] ", arabic).groups()
            assert male[0] == "ي"
            assert female == "ت" + male[1:]


def test_arabic_nouns_and_adjectives_have_their_feminine():
    people = [occupation["arabic"] for occupation in VOCABULARY["occupation"]]
    people += [arabic for _, arabic in VOCABULARY["adjectives"]]
    people += VOCABULARY["postures"].values()
    for pair in people:
        male, female = re.fullmatch(r"\[([^|]+)\|([^|]+)\]", pair).groups()
        assert not male.endswith("ة")
        assert female.endswith("ة") or female in OTHER_FEMININES


@pytest.mark.parametrize(
    "caption",
    [
        "في صيدلية صغيرة ترتب صيدلانية شابة علب الدواء على الرفوف، وقلمها خلف أذنها.",
        "هي عازفة شقراء تضبط أوتار غيتار على مسرح صغير، وفي إصبعها خاتم من الذهب.",
        "هو عازف أشقر يضبط أوتار غيتار على مسرح صغير، وفي إصبعه خاتم من الذهب.",
        "امرأة واقفة على رصيف مزدحم قبيل الظهر وهي تتحدث عبر جهاز لاسلكي.",
        "شابة تفتح خلية نحل خشبية في مرج مليء بالزهور، وصديقاها ينتظرانها.",
        "المرأة التي تأخذ عينة من التربة في وادٍ عميق هي جيولوجية مسنة، ودفترها مفتوح أمامها.",
    ],
)
def test_captions_that_were_read_by_eye(caption):
    assert caption in {row["text"] for row in ROWS}


def told_after(male, female):
    """Return the fraction of words before the first one that reveals the gender."""
    pairs = list(zip(male["text"].split(), female["text"].split(), strict=True))
    return next(i for i, (one, other) in enumerate(pairs) if one != other) / len(pairs)


def test_late_templates_tell_the_gender_late_in_english_only():
    images = by(ROWS, "scene", "language")
    for (scene, language), (male, female) in images.items():
        if language == "english":
            english, arabic = told_after(male, female), told_after(*images[scene, "arabic"])
            assert (english >= 0.5) == male["template"].startswith("late_"), male["text"]
            assert english > arabic or english < 0.5
            assert arabic <= 0.5


def test_the_demo_stands_alone():
    code = "import sys, actkit.demo; print(*(m for m in sys.modules if 'torch' in m or 'actkit.' in m))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert set(loaded.stdout.split()) == {"actkit.demo", "actkit.demo.captions"}
