"""Texts and labels find the sample that they belong to, or nothing is written."""

from pathlib import Path

import pytest

import actkit
from actkit.errors import InputError
from tests.importers import scripts

ROWS = [
    "name,tongue,caption,gender,place",
    "d.jpg,english,The nurse waits.,female,4",
    "a.jpg,english,The doctor reads.,male,1",
    "c.jpg,english,He writes.,male,3",
    "b.jpg,english,She sings.,female,2",
    "a.jpg,arabic,الطبيب يقرأ,male,5",
    "b.jpg,arabic,هي تغني,female,6",
    "c.jpg,arabic,هو يكتب,male,7",
    "d.jpg,arabic,الممرضة تنتظر,female,8",
    "e.jpg,arabic,لا أحد,male,9",
]
COLUMNS = {"text_column": "caption", "language_column": "tongue", "id_column": "name"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripts.save_checkpoints(tmp_path_factory.mktemp("joining") / "old")


def write(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_rows_are_found_by_name_and_language(folder: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.csv", ROWS)
    cube = actkit.import_files(folder, format="pt", out=tmp_path / "run", data=data, **COLUMNS)
    assert cube.text.values.tolist()[:4] == ["الطبيب يقرأ", "هي تغني", "هو يكتب", "الممرضة تنتظر"]
    assert cube.text.values.tolist()[4:] == [
        "The doctor reads.",
        "She sings.",
        "He writes.",
        "The nurse waits.",
    ]
    assert cube.place.values.tolist() == ["5", "6", "7", "8", "1", "2", "3", "4"]
    assert cube.image_id.values.tolist() == scripts.IMAGES * 2
    assert cube.attrs["data"] == "rows.csv"


def test_one_language_needs_no_column(tmp_path: Path) -> None:
    scripts.save_checkpoint(tmp_path / "old", "english", 0)
    data = write(
        tmp_path / "rows.jsonl",
        [
            f'{{"sample_id": "{name}", "text": "t {name}", "n": {at}}}'
            for at, name in enumerate(reversed(scripts.IMAGES))
        ],
    )
    cube = actkit.import_files(tmp_path / "old", format="pt", out=tmp_path / "run", data=data)
    assert cube.text.values.tolist() == [f"t {name}" for name in scripts.IMAGES]
    assert cube.n.values.tolist() == [3, 2, 1, 0]
    assert set(cube.language.values) == {"english"}


def test_wide_tables(folder: Path, tmp_path: Path) -> None:
    data = write(
        tmp_path / "rows.csv",
        ["sample_id,en,ar", *(f"{name},en {name},ar {name}" for name in scripts.IMAGES)],
    )
    cube = actkit.import_files(
        folder, format="pt", out=tmp_path / "run", data=data, text_columns="english=en,arabic=ar"
    )
    wanted = [f"{language} {name}" for language in ("ar", "en") for name in scripts.IMAGES]
    assert cube.text.values.tolist() == wanted


def test_batches_take_language_and_text(tmp_path: Path) -> None:
    folder = scripts.save_batches(tmp_path / "old")
    names = [f"task-{number}-{row}" for number in (0, 1) for row in range(3)]
    data = write(
        tmp_path / "rows.csv", ["sample_id,language,text", *(f"{name},klingon,t {name}" for name in names)]
    )
    cube = actkit.import_files(folder, format="batches", out=tmp_path / "run", data=data)
    assert cube.text.values.tolist() == [f"t {name}" for name in names]
    assert set(cube.language.values) == {"klingon"}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (ROWS[:1] + ROWS[2:], {}, "has no row for `d.jpg english` (set `id_column`, or add the rows)"),
        ([*ROWS, ROWS[1]], {}, "sample_id `d.jpg` in english is also that of row 1"),
        (ROWS[:1], {}, "holds no rows"),
        (
            [ROWS[0], ROWS[1].replace("female", "male"), *ROWS[2:]],
            {},
            "`gender`: is `male` where the files say `female`; 1 samples differ",
        ),
        (ROWS[:5], {"language_column": None}, "names no languages, but the files hold arabic, english"),
        (ROWS, {"text_column": "prose"}, "has no column `prose`"),
        (ROWS, {"id_column": "tongue"}, "is also that of row 1"),
        (ROWS, {"data": None}, "text_column: is a column of `data`, which is not given"),
    ],
)
def test_what_does_not_match_is_said(
    folder: Path, tmp_path: Path, rows: list[str], options: dict[str, str | None], message: str
) -> None:
    data = write(tmp_path / "rows.csv", rows)
    with pytest.raises(InputError) as error:
        actkit.import_files(folder, format="pt", out=tmp_path / "run", **{"data": data, **COLUMNS, **options})
    assert message in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_rows_of_nameless_samples_are_counted(tmp_path: Path) -> None:
    folder = scripts.save_chunks(tmp_path / "old")
    data = write(tmp_path / "rows.csv", ROWS)
    with pytest.raises(InputError, match="has 9 rows, but the files hold 8 samples without ids"):
        actkit.import_files(folder, format="npz", out=tmp_path / "run", data=data, **COLUMNS)
    write(data, ROWS[:9])
    cube = actkit.import_files(folder, format="npz", out=tmp_path / "run", data=data, **COLUMNS)
    assert cube.sample_id.values.tolist() == ["d.jpg", "a.jpg", "c.jpg", "b.jpg", *scripts.IMAGES]
    assert cube.language.values.tolist() == ["english"] * 4 + ["arabic"] * 4
    with pytest.raises(InputError, match="is `arabic` where the files say `english`; 4 samples differ"):
        actkit.import_files(
            folder, format="npz", out=tmp_path / "other", data=data, language="english", **COLUMNS
        )
