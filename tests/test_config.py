"""Options: what is understood, what is refused in which words, and YAML that runs nothing."""

# ruff: noqa: E501 - a table of exact messages is easier to read unbroken

from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from actkit.config import Config, check, read_yaml
from actkit.layers import GRAMMAR
from actkit.schema import SAVABLE

ASKED = {"model": "m", "data": "d.csv", "out": "o"}

UNDERSTOOD: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"limit": "5", "batch_size": "8", "window_mb": "64"}, {"limit": 5, "batch_size": 8, "window_mb": 64}),
    ({"batch_size": "auto"}, {"batch_size": "auto"}),
    ({"limit": None, "save": None}, {"limit": None, "save": SAVABLE}),
    ({"languages": "english, arabic"}, {"languages": ("english", "arabic")}),
    ({"languages": ["english, arabic"]}, {"languages": ("english, arabic",)}),
    ({"labels": ""}, {"labels": ()}),
    ({"save": "norm,residual"}, {"save": ("residual", "norm")}),
    ({"text_columns": "english=en, arabic = a=b"}, {"text_columns": {"english": "en", "arabic": "a=b"}}),
    ({"layers": 7}, {"layers": "7"}),
    ({"layers": ["0-10", -1]}, {"layers": "0-10 -1"}),
    ({"layers": range(3)}, {"layers": "0 1 2"}),
    ({"device": "cuda:1"}, {"device": "cuda:1"}),
    ({"data": Path("a") / "b.csv", "out": Path("o")}, {"data": "a/b.csv", "out": "o"}),
]

REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"limt": 3}, ["limt: is no option (did you mean limit?)"]),
    ({"max-tokens": 3}, ["max-tokens: is no option (did you mean max_tokens?)"]),
    ({"text.column": 3}, ["text.column: is no option (did you mean text_column?)"]),
    ({"zzz": 3}, [f"zzz: is no option (known: {', '.join(Config.model_fields)})"]),
    (
        {"limit": "many"},
        ["limit: 'many' is not possible (give how many samples to take, from the first on, all languages together)"],
    ),
    (
        {"limit": 0},
        ["limit: 0 is not possible (give how many samples to take, from the first on, all languages together)"],
    ),
    ({"limit": True}, ["limit: True is no whole number"]),
    ({"max_tokens": 2.5}, ["max_tokens: 2.5 is no whole number"]),
    ({"batch_size": False}, ["batch_size: False is no whole number"]),
    ({"batch_size": "0"}, ["batch_size: a batch holds 1 prompt or more"]),
    ({"batch_size": "big"}, ["batch_size: 'big' is not possible (give number of prompts per forward pass, or auto)"]),
    ({"window_mb": 0}, ["window_mb: 0 is not possible (give most memory of one window of samples, in MB)"]),
    ({"dtype": "int8"}, ["dtype: 'int8' is not possible (give dtype of the weights: auto (the checkpoint's), float32, bfloat16 or float16)"]),
    ({"device": "gpu"}, ["device: 'gpu' is not possible (give auto, cpu, mps, cuda or cuda:N)"]),
    ({"storage": 4}, ["storage: 4 is not possible (give rounding of residual and embedding: exact, bfloat16 or float16)"]),
    ({"model": ""}, ["model: '' is not possible (give Hugging Face id, or folder of a model)"]),
    ({"data": ["a.csv"]}, ["data: ['a.csv'] is not possible (give CSV, TSV, JSONL or Parquet file of prompts)"]),
    ({"data": "\udcff.csv"}, ["data: '\\udcff.csv' is not possible (give CSV, TSV, JSONL or Parquet file of prompts)"]),
    ({"out": "s3://bucket/x"}, ["out: `s3://bucket/x` is not on this machine; only local paths can be used yet"]),
    ({"languages": {"english": 1}}, ["languages: {'english': 1} is not possible (give languages to keep; all by default)"]),
    ({"languages": ["english", False]}, ["languages: False is not possible (give languages to keep; all by default)"]),
    ({"languages": ""}, ["languages: names no language; leave it out to take all"]),
    ({"languages": []}, ["languages: names no language; leave it out to take all"]),
    ({"text_columns": {}}, ["text_columns: names no language; leave it out to take all"]),
    ({"text_columns": "english"}, ["text_columns: write language=column,language=column"]),
    ({"text_columns": "english=,arabic=ar"}, ["text_columns: write language=column,language=column"]),
    ({"text_columns": "english=a,english=b"}, ["text_columns: names a language twice"]),
    (
        {"text_columns": {"english": 1}},
        ["text_columns: 1 is not possible (give language=column pairs, where one row holds several languages)"],
    ),
    ({"save": "residual,foo"}, [f"save: cannot save ['foo']; choose from {', '.join(SAVABLE)}"]),
    ({"save": []}, [f"save: cannot save nothing; choose from {', '.join(SAVABLE)}"]),
    ({"layers": True}, [f"layers: write {GRAMMAR}"]),
    ({"layers": 1.5}, [f"layers: write {GRAMMAR}"]),
    ({"layers": [[1, 2]]}, [f"layers: cannot read `[1` (write {GRAMMAR}); cannot read `2]` (write {GRAMMAR})"]),
    (
        {"limt": 3, "layers": "mlp_3", "save": "x", "device": "gpu"},
        [
            "layers: `mlp_3`: component `mlp` cannot be captured yet (components: residual)",
            "device: 'gpu' is not possible (give auto, cpu, mps, cuda or cuda:N)",
            f"save: cannot save ['x']; choose from {', '.join(SAVABLE)}",
            "limt: is no option (did you mean limit?)",
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "values"), UNDERSTOOD, ids=[str(options) for options, _ in UNDERSTOOD])
def test_understood(options: dict[str, Any], values: dict[str, Any]) -> None:
    config, faults = check({**ASKED, **options})
    assert faults == []
    assert config is not None
    assert {name: getattr(config, name) for name in values} == values


@pytest.mark.parametrize(("options", "messages"), REFUSED, ids=[ascii(options) for options, _ in REFUSED])
def test_refused(options: dict[str, Any], messages: list[str]) -> None:
    config, faults = check({**ASKED, **options})
    assert [str(fault) for fault in faults] == messages
    required = ASKED.keys() & options.keys()
    # what is not at fault can still be checked
    assert (config is None) == bool(required)


def test_missing_options_are_all_named() -> None:
    config, faults = check({"limit": 3})
    assert config is None
    assert [str(fault) for fault in faults] == [
        "model: is missing (give Hugging Face id, or folder of a model)",
        "data: is missing (give CSV, TSV, JSONL or Parquet file of prompts)",
        "out: is missing (give run folder to write, or to continue)",
    ]


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config, _ = check({"model": "~/m", "data": "~/d.csv", "out": "~nobody-of-this-name/o"})
    assert config is not None
    assert (config.model, config.data) == ("/home/someone/m", "/home/someone/d.csv")
    assert config.out == "~nobody-of-this-name/o"


@pytest.mark.parametrize("name", Config.model_fields)
def test_every_option_is_described(name: str) -> None:
    description = Config.model_fields[name].description
    assert description
    assert description[0].islower() or description.split()[0] in {"CSV,", "Hugging"}
    assert not description.endswith(".")


WRITE = "(write plain name: value lines)"

NOT_YAML: dict[str, tuple[bytes, str]] = {
    "runs a command": (
        b"model: m\ndata: !!python/object/apply:os.system ['touch {marker}']\n",
        f"{{path}}, line 2: tag tag:yaml.org,2002:python/object/apply:os.system is refused {WRITE}",
    ),
    "runs a command by another name": (
        b"%TAG ! tag:yaml.org,2002:python/\n---\nx: !object/apply:os.system ['touch {marker}']\n",
        f"{{path}}, line 3: tag tag:yaml.org,2002:python/object/apply:os.system is refused {WRITE}",
    ),
    "tagged mapping": (b"!x\nmodel: m\n", f"{{path}}, line 1: tag !x is refused {WRITE}"),
    "tagged key": (b"!!str model: m\n", f"{{path}}, line 1: tag tag:yaml.org,2002:str is refused {WRITE}"),
    "alias": (b"a: &a [*a]\n", f"{{path}}, line 1: aliases are refused {WRITE}"),
    "repeated key": (b"model: m\nout: o\nmodel: n\n", f"{{path}}, line 3: `model` is given twice {WRITE}"),
    "list": (b"- model\n", "{path}: is not a mapping of option names to values (write name: value lines)"),
    "empty": (b"", "{path}: is not a mapping of option names to values (write name: value lines)"),
    "number as key": (b"1: m\n", "{path}: is not a mapping of option names to values (write name: value lines)"),
    "two documents": (b"a: 1\n---\nb: 2\n", f"{{path}}, line 2: but found another document {WRITE}"),
    "open bracket": (
        b"model: m\nlayers: [1, 2\n",
        f"{{path}}, line 3: expected ',' or ']', but got '<stream end>' {WRITE}",
    ),
    "NUL": (
        b"model: \0\n",
        f"{{path}}: unacceptable character #x0000: special characters are not allowed {WRITE}",
    ),
    "no such date": (b"out: 2024-13-45\n", f"{{path}}: cannot be read: month must be in 1..12 {WRITE}"),
    "not UTF-8": (b"model: caf\xe9\n", "{path}: is not UTF-8 at byte 10 (save it as UTF-8)"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_YAML)
def test_yaml_is_refused(name: str, tmp_path: Path) -> None:
    content, message = NOT_YAML[name]
    path, marker = tmp_path / "run.yaml", tmp_path / "marker"
    path.write_bytes(content.replace(b"{marker}", str(marker).encode()))
    options, faults = read_yaml(path)
    assert options == {}
    assert [str(fault) for fault in faults] == [message.format(path=path)]
    assert not marker.exists()


def test_yaml_with_endless_brackets_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("layers: " + "[" * 5000 + "]" * 5000)
    options, (fault,) = read_yaml(path)
    assert options == {}
    assert fault.what.startswith("cannot be read: maximum recursion depth exceeded")


def test_yaml_that_is_not_there_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    for path, message in {
        missing: f"{missing}: cannot be read: No such file or directory (check the path)",
        tmp_path: f"{tmp_path}: cannot be read: Is a directory (check the path)",
        Path("a\0.yaml"): f"a\0.yaml: cannot be read: embedded null byte {WRITE}",
    }.items():
        options, faults = read_yaml(path)
        assert options == {}
        assert [str(fault) for fault in faults] == [message]


def test_yaml_gives_types_and_keeps_scripts(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "\ufeffmodel: نموذج\nlimit: 3\nlanguages: [english, العربية]\ntext_columns: {english: en}\n",
        encoding="utf-8",
    )
    assert read_yaml(path) == (
        {
            "model": "نموذج",
            "limit": 3,
            "languages": ["english", "العربية"],
            "text_columns": {"english": "en"},
        },
        [],
    )


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
counts = st.none() | st.integers(1, 10**6)


@given(
    paths=st.tuples(names, names, names),
    strings=st.lists(names, min_size=1, max_size=4),
    pairs=st.none() | st.dictionaries(names, names, min_size=1, max_size=3),
    numbers=st.tuples(counts, counts, counts),
    save=st.sets(st.sampled_from(SAVABLE), min_size=1),
    layers=st.lists(st.integers(-5, 5), min_size=1),
)
def test_config_survives_its_yaml(
    paths: tuple[str, str, str],
    strings: list[str],
    pairs: dict[str, str] | None,
    numbers: tuple[int | None, int | None, int | None],
    save: set[str],
    layers: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    assume(not any("://" in path or path.startswith("~") for path in paths))
    model, data, out = paths
    config = Config(
        model=model,
        data=data,
        out=out,
        languages=strings,
        text_columns=pairs,
        text_column=strings[0],
        limit=numbers[0],
        max_tokens=numbers[1],
        batch_size=numbers[2] or "auto",
        save=sorted(save),
        layers=layers,
    )
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    options, faults = read_yaml(path)
    assert faults == []
    assert check(options) == (config, [])


def test_yaml_says_only_what_differs_from_the_defaults() -> None:
    assert Config(**ASKED).to_yaml() == "model: m\ndata: d.csv\nout: o\n"
