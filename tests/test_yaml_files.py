"""Options in YAML: nothing is executed, and a config survives a round trip."""

# ruff: noqa: E501 - a table of exact messages is easier to read unbroken

from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from actkit.config import Config, Generation
from actkit.config_faults import check
from actkit.schema import SAVABLE
from actkit.yaml_files import read_yaml

ASKED = {"model": "m", "data": "d.csv", "out": "o"}

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


@pytest.mark.slow
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
        tmp_path: f"{tmp_path}: cannot be read: is a folder (check the path)",
        Path("a\0.yaml"): "a\0.yaml: cannot be read: embedded null byte (check the path)",
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
fractions = st.floats(0, 1, exclude_min=True)
generations = st.builds(Generation, max_new_tokens=st.integers(1, 100_000)) | st.builds(
    Generation,
    max_new_tokens=st.integers(1, 100_000),
    do_sample=st.just(True),
    temperature=st.floats(0, exclude_min=True, allow_infinity=False),
    top_p=fractions,
    top_k=counts,
    seed=st.integers(0, 2**32 - 1),
)
# a chat with or without images, or a template, or neither
manners = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={"chat": st.just(True), "system": names, "image_column": names, "image_root": names},
    ),
    st.fixed_dictionaries({"chat": st.just(False)}, optional={"template": names.map("{{text}}{}".format)}),
    st.fixed_dictionaries({"template": names.map("{}: {{text}}".format)}),
)
choices = st.fixed_dictionaries(
    {},
    optional={
        "generate": generations,
        "keep_tokens": st.sampled_from(["all", "last", "content", "mean"]),
        "on_bad_row": st.sampled_from(["raise", "skip"]),
        "on_nonfinite": st.sampled_from(["keep", "zero", "raise"]),
        "streaming": st.booleans(),
        "split": names,
        "subset": names,
        "category_column": names,
        "categories": st.lists(names, min_size=1, max_size=3),
        "max_per_category": st.integers(1, 100),
        "device_map": st.sampled_from(["auto", "balanced", "balanced_low_0", "sequential"]),
        "attn_implementation": st.sampled_from(["eager", "sdpa", "flash_attention_2", "flex_attention"]),
        "quantization": st.sampled_from(["8bit", "4bit"]),
        "dtype": st.sampled_from(["float32", "bfloat16", "float16"]),
        "revision": names,
    },
)


@pytest.mark.slow
@given(
    paths=st.tuples(names, names, names),
    strings=st.lists(names, min_size=1, max_size=4),
    pairs=st.none() | st.dictionaries(names, names, min_size=1, max_size=3),
    numbers=st.tuples(counts, counts, counts),
    save=st.sets(st.sampled_from(SAVABLE), min_size=1),
    layers=st.lists(st.integers(-5, 5), min_size=1),
    manner=manners,
    chosen=choices,
)
def test_config_survives_its_yaml(
    paths: tuple[str, str, str],
    strings: list[str],
    pairs: dict[str, str] | None,
    numbers: tuple[int | None, int | None, int | None],
    save: set[str],
    layers: list[int],
    manner: dict[str, Any],
    chosen: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    assume("{text}" not in manner.get("template", "").replace("{text}", "", 1))
    local = (*paths, manner.get("image_root", ""))
    assume(not any("://" in path or path.startswith("~") for path in local))
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
        **manner,
        **chosen,
    )
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    options, faults = read_yaml(path)
    assert faults == []
    assert check(options) == (config, [])
    assert config.to_yaml() == path.read_text(encoding="utf-8")


def test_a_generation_is_a_mapping_in_yaml(tmp_path: Path) -> None:
    config, faults = check({**ASKED, "generate": "max_new_tokens=20,do_sample=true,seed=3,temperature=1.0"})
    assert faults == []
    assert config is not None
    assert config.to_yaml() == (
        "model: m\ndata: d.csv\nout: o\ngenerate:\n  max_new_tokens: 20\n  do_sample: true\n  seed: 3\n"
    )
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert check(read_yaml(path)[0]) == (config, [])


def test_what_is_false_on_purpose_is_kept_in_yaml() -> None:
    # chat has three states; by default it depends on the images
    config, _ = check({**ASKED, "chat": False})
    assert config is not None
    assert config.to_yaml() == "model: m\ndata: d.csv\nout: o\nchat: false\n"


def test_yaml_says_only_what_differs_from_the_defaults() -> None:
    assert Config(**ASKED).to_yaml() == "model: m\ndata: d.csv\nout: o\n"
