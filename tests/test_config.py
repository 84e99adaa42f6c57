"""Options that are accepted, and the exact messages for those that are rejected."""

# ruff: noqa: E501 - a table of exact messages is easier to read unbroken

from pathlib import Path
from typing import Any

import pytest

from actkit.config import Config, Generation, Tracking
from actkit.config_faults import check
from actkit.layer_spec import GRAMMAR
from actkit.schema import SAVABLE, SAVED

ASKED = {"model": "m", "data": "d.csv", "out": "o"}

UNDERSTOOD: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"limit": "5", "batch_size": "8", "memory_budget": "64"}, {"limit": 5, "batch_size": 8, "memory_budget": 64}),
    ({"batch_size": "auto"}, {"batch_size": "auto"}),
    ({"limit": None, "save": None}, {"limit": None, "save": SAVED}),
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
    ({"layers": "residual_all mlp_5-15"}, {"layers": "residual_all mlp_5-15"}),
    ({"image_column": "image", "image_root": Path("a") / "b"}, {"image_root": "a/b", "chats": True}),
    ({"on_bad_row": "skip", "streaming": "true"}, {"on_bad_row": "skip", "streaming": True}),
    ({"split": "test", "subset": "en"}, {"split": "test", "subset": "en"}),
    ({"categories": "job, food", "max_per_category": "3"}, {"categories": ("job", "food"), "max_per_category": 3}),
    ({"categories": ["a, b"], "category_column": "topic"}, {"categories": ("a, b",), "category_column": "topic"}),
    ({}, {"chat": None, "chats": False, "keep_tokens": "all", "generate": None, "on_nonfinite": "keep"}),
    ({"chat": True}, {"chats": True}),
    ({"chat": "false"}, {"chat": False, "chats": False}),
    ({"system": "Be brief."}, {"chat": None, "chats": True}),
    ({"system": "Be brief.", "chat": True, "image_column": "image"}, {"chats": True}),
    ({"template": "He said: {text} {name} {{}}"}, {"template": "He said: {text} {name} {{}}", "chats": False}),
    ({"template": "{text}", "chat": False}, {"template": "{text}", "chats": False}),
    ({"keep_tokens": "mean", "on_nonfinite": "zero"}, {"keep_tokens": "mean", "on_nonfinite": "zero"}),
    ({"device_map": "balanced_low_0", "device": "auto"}, {"device_map": "balanced_low_0"}),
    ({"attn_implementation": "eager", "quantization": "4bit"}, {"attn_implementation": "eager", "quantization": "4bit"}),
    ({"generate": {"max_new_tokens": 20}}, {"generate": Generation(max_new_tokens=20)}),
    ({"generate": Generation(max_new_tokens=20)}, {"generate": Generation(max_new_tokens=20)}),
    ({"generate": "max_new_tokens=20"}, {"generate": Generation(max_new_tokens=20)}),
    ({"generate": "max_new_tokens=20,do_sample=true"}, {"generate": Generation(max_new_tokens=20, do_sample=True)}),
    (
        {"generate": " max_new_tokens = 2 , do_sample=True, temperature=0.7, top_p=1, top_k=50, seed=4294967295"},
        {"generate": Generation(max_new_tokens=2, do_sample=True, temperature=0.7, top_p=1.0, top_k=50, seed=2**32 - 1)},
    ),
    ({"wandb": {"project": "p"}}, {"wandb": Tracking(project="p")}),
    (
        {"wandb": "project=my runs, entity=us,name=a=b,group=g,mode=offline"},
        {"wandb": Tracking(project="my runs", entity="us", name="a=b", group="g", mode="offline")},
    ),
]  # fmt: skip

IMAGES = {"image_column": "image"}
HOW = "options for continuing each prompt: max_new_tokens=20,do_sample=true,temperature=0.7,seed=0"
SETTINGS = "max_new_tokens, do_sample, temperature, top_p, top_k, seed"
PROJECT = r"project name, of up to 128 characters, without / \ # ? % :"
DATA = (
    "CSV, TSV, JSON, JSONL, Parquet or .xlsx file of prompts; folder or pattern of Parquet or JSONL shards; "
    "or Hugging Face dataset"
)


def drawn(**settings: Any) -> dict[str, Any]:
    return {"generate": {"max_new_tokens": 5, "do_sample": True, **settings}}


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"limt": 3}, ["limt: is not an option (did you mean limit?)"]),
    ({"max-tokens": 3}, ["max-tokens: is not an option (did you mean max_tokens?)"]),
    ({"tokens": "mean"}, ["tokens: is not an option (did you mean keep_tokens?)"]),
    ({"text.column": 3}, ["text.column: is not an option (did you mean text_column?)"]),
    ({"zzz": 3}, [f"zzz: is not an option (known: {', '.join(Config.model_fields)})"]),
    (
        {"limit": "many"},
        ["limit: 'many' is not possible (give number of samples to take, in the order of the data, over all languages)"],
    ),
    (
        {"limit": 0},
        ["limit: 0 is not possible (give number of samples to take, in the order of the data, over all languages)"],
    ),
    ({"limit": True}, ["limit: True is not a whole number"]),
    ({"max_tokens": 2.5}, ["max_tokens: 2.5 is not a whole number"]),
    ({"batch_size": False}, ["batch_size: False is not a whole number"]),
    ({"batch_size": "0"}, ["batch_size: a batch holds at least 1 prompt"]),
    ({"batch_size": "big"}, ["batch_size: 'big' is not possible (give number of prompts per forward pass, or auto)"]),
    ({"memory_budget": 1}, ["memory_budget: 1 is not possible (give 2 to 1,048,576 MB, or auto)"]),
    ({"memory_budget": 1.5}, ["memory_budget: 1.5 is not a whole number"]),
    ({"dtype": "int8"}, ["dtype: 'int8' is not possible (give dtype of the weights: auto (that of the checkpoint), float32, bfloat16 or float16)"]),
    ({"device": "gpu"}, ["device: 'gpu' is not possible (give auto, cpu, mps, cuda or cuda:N)"]),
    ({"storage": 4}, ["storage: 4 is not possible (give rounding of the stored activations of each token: exact, bfloat16 or float16)"]),
    ({"model": ""}, ["model: '' is not possible (give Hugging Face model id, model folder, or GGUF file)"]),
    ({"data": ["a.csv"]}, [f"data: ['a.csv'] is not possible (give {DATA})"]),
    ({"data": "\udcff.csv"}, [f"data: '\\udcff.csv' is not possible (give {DATA})"]),
    ({"out": "http://host/x"}, ["out: has the unknown scheme http:// (use s3://, gs:// or az://, or a folder)"]),
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
        ["text_columns: 1 is not possible (give language=column pairs, if a row holds texts in several languages)"],
    ),
    ({"save": "residual,foo"}, [f"save: cannot save ['foo']; choose from {', '.join(SAVABLE)}"]),
    ({"save": []}, [f"save: cannot save nothing; choose from {', '.join(SAVABLE)}"]),
    ({"layers": True}, [f"layers: write {GRAMMAR}"]),
    ({"layers": 1.5}, [f"layers: write {GRAMMAR}"]),
    ({"layers": [[1, 2]]}, [f"layers: cannot read `[1` (write {GRAMMAR}); cannot read `2]` (write {GRAMMAR})"]),
    (
        {"limt": 3, "layers": "head_3", "save": "x", "device": "gpu"},
        [
            "layers: `head_3`: component `head` is unknown (components: residual, attention, mlp, vision)",
            "device: 'gpu' is not possible (give auto, cpu, mps, cuda or cuda:N)",
            f"save: cannot save ['x']; choose from {', '.join(SAVABLE)}",
            "limt: is not an option (did you mean limit?)",
        ],
    ),
    # data and images
    ({"image_root": "https://a/b"}, ["image_root: `https://a/b` is not on this machine; only local paths are supported"]),
    ({"image_root": 3}, ["image_root: 3 is not possible (give folder that image paths are relative to; the folder of the data by default)"]),
    ({"image_column": ["a"]}, ["image_column: ['a'] is not possible (give column of the images: paths or encoded images)"]),
    ({"on_bad_row": "drop"}, ["on_bad_row: 'drop' is not possible (give treatment of rows that cannot be used: raise, or skip (and list them))"]),
    ({"streaming": "maybe"}, ["streaming: 'maybe' is not possible (give true or false)"]),
    ({"split": 3}, ["split: 3 is not possible (give split of the dataset; train by default)"]),
    ({"subset": ["en"]}, ["subset: ['en'] is not possible (give configuration of a Hugging Face dataset)"]),
    ({"category_column": 1}, ["category_column: 1 is not possible (give column of the category names)"]),
    ({"categories": ""}, ["categories: names no category; leave it out to take all"]),
    ({"categories": []}, ["categories: names no category; leave it out to take all"]),
    ({"categories": ["job", 1]}, ["categories: 1 is not possible (give categories to keep; all by default)"]),
    ({"max_per_category": 0}, ["max_per_category: 0 is not possible (give maximum number of samples per category)"]),
    ({"max_per_category": 1.5}, ["max_per_category: 1.5 is not a whole number"]),
    # prompts
    ({"chat": "maybe"}, ["chat: 'maybe' is not possible (give true or false)"]),
    ({"chat": 3}, ["chat: 3 is not possible (give true or false)"]),
    ({"system": ""}, ["system: '' is not possible (give system prompt for the chat template)"]),
    ({"template": "He said:"}, ["template: must contain {text} exactly once, where the text goes"]),
    ({"template": "{text} {text}"}, ["template: must contain {text} exactly once, where the text goes"]),
    ({"keep_tokens": "first"}, ["keep_tokens: 'first' is not possible (give positions to keep: all, last (the last one), content, or mean (over content tokens))"]),
    # the model
    ({"device_map": "cuda:0"}, ["device_map: 'cuda:0' is not possible (give distribution of the weights over all devices by accelerate: auto, balanced, balanced_low_0 or sequential)"]),
    ({"attn_implementation": "flash"}, ["attn_implementation: 'flash' is not possible (give attention implementation: eager, sdpa, flash_attention_2, flash_attention_3 or flex_attention)"]),
    ({"quantization": 4}, ["quantization: 4 is not possible (give bitsandbytes quantization of the weights: 8bit or 4bit)"]),
    ({"on_nonfinite": "drop"}, ["on_nonfinite: 'drop' is not possible (give treatment of NaN and Inf values: keep, zero or raise; they are always counted)"]),
    # generation
    ({"generate": 20}, [f"generate: 20 is not possible (give {HOW})"]),
    ({"generate": True}, [f"generate: True is not possible (give {HOW})"]),
    ({"generate": ["max_new_tokens"]}, [f"generate: ['max_new_tokens'] is not possible (give {HOW})"]),
    ({"generate": ""}, ["generate: write max_new_tokens=20, and further pairs separated by commas"]),
    ({"generate": "20"}, ["generate: write max_new_tokens=20, and further pairs separated by commas"]),
    ({"generate": "max_new_tokens=20,"}, ["generate: write max_new_tokens=20, and further pairs separated by commas"]),
    ({"generate": "max_new_tokens="}, ["generate: write max_new_tokens=20, and further pairs separated by commas"]),
    ({"generate": "max_new_tokens=2,max_new_tokens=3"}, ["generate: names a setting twice"]),
    ({"generate": {}}, ["generate.max_new_tokens: is missing (give maximum number of tokens to generate, 1 to 100,000)"]),
    ({"generate": "do_sample=true"}, ["generate.max_new_tokens: is missing (give maximum number of tokens to generate, 1 to 100,000)"]),
    ({"generate": "max_tokens=20"}, [
        "generate.max_new_tokens: is missing (give maximum number of tokens to generate, 1 to 100,000)",
        "generate.max_tokens: is not an option (did you mean max_new_tokens?)",
    ]),
    ({"generate": {"max_new_tokens": 5, "num_beams": 4}}, [f"generate.num_beams: is not an option (known: {SETTINGS})"]),
    # suggestions come from the settings of a generation, not from the options
    ({"generate": {"max_new_tokens": 5, "limt": 4}}, [f"generate.limt: is not an option (known: {SETTINGS})"]),
    ({"generate": {"max_new_tokens": True}}, ["generate.max_new_tokens: True is not a whole number"]),
    ({"generate": {"max_new_tokens": 2.0}}, ["generate.max_new_tokens: 2.0 is not a whole number"]),
    ({"generate": "max_new_tokens=2.5"}, ["generate.max_new_tokens: '2.5' is not possible (give maximum number of tokens to generate, 1 to 100,000)"]),
    (drawn(do_sample="maybe"), ["generate.do_sample: 'maybe' is not possible (give true or false)"]),
    (drawn(temperature="nan"), ["generate.temperature: 'nan' is not possible (give sampling temperature, above 0)"]),
    (drawn(temperature=float("inf")), ["generate.temperature: inf is not possible (give sampling temperature, above 0)"]),
    (
        drawn(max_new_tokens=0, temperature=0, top_p=1.01, top_k=0, seed=-1),
        [
            "generate.max_new_tokens: 0 is not possible (give maximum number of tokens to generate, 1 to 100,000)",
            "generate.temperature: 0 is not possible (give sampling temperature, above 0)",
            "generate.top_p: 1.01 is not possible (give total probability of the most likely tokens to sample from, up to 1)",
            "generate.top_k: 0 is not possible (give number of the most likely tokens to sample from)",
            "generate.seed: -1 is not possible (give random seed, from 0 to 4294967295)",
        ],
    ),
    (drawn(seed=2**32), ["generate.seed: 4294967296 is not possible (give random seed, from 0 to 4294967295)"]),
    (
        {"generate": "max_new_tokens=5,top_p=0.9,temperature=0.5"},
        ["generate: set do_sample: true; nothing uses temperature, top_p without it"],
    ),
    (drawn(do_sample=False, seed=0), ["generate: set do_sample: true; nothing uses seed without it"]),
    ({"wandb": "p"}, ["wandb: write project=NAME, and further pairs separated by commas"]),
    ({"wandb": "project=p,project=q"}, ["wandb: names a setting twice"]),
    ({"wandb": ["p"]}, ["wandb: ['p'] is not possible (give logging to Weights & Biases: project=NAME,entity=TEAM,group=NAME,mode=offline)"]),
    ({"wandb": "mode=offline"}, [f"wandb.project: is missing (give {PROJECT})"]),
    ({"wandb": {"project": "a/b"}}, [f"wandb.project: 'a/b' is not possible (give {PROJECT})"]),
    ({"wandb": {"project": "a" * 129}}, [f"wandb.project: '{'a' * 129}' is not possible (give {PROJECT})"]),
    ({"wandb": "project=p,projct=q"}, ["wandb.projct: is not an option (did you mean project?)"]),
    (
        {"wandb": {"project": "p", "api_key": "secret", "mode": "disabled", "group": ""}},
        [
            "wandb.group: '' is not possible (give group of the run; the name of the run folder by default)",
            "wandb.mode: 'disabled' is not possible (give online (the default unless WANDB_MODE is set), or offline, to upload with `wandb sync`)",
            "wandb.api_key: is not an option (known: project, entity, name, group, mode)",
        ],
    ),
    # options that contradict each other
    ({"system": "x", "chat": False}, ["system: a system prompt needs the chat template (leave out chat: false)"]),
    ({"template": "{text}", "chat": True}, ["template: cannot be combined with the chat template (put its wording into the texts)"]),
    ({"template": "{text}", "system": "x"}, ["template: cannot be combined with the chat template (put its wording into the texts)"]),
    ({"template": "{text}", **IMAGES}, ["template: cannot be combined with the chat template (put its wording into the texts)"]),
    ({"chat": False, **IMAGES}, ["chat: images need the chat template (leave out chat: false)"]),
    ({"device_map": "auto", "device": "cuda:1"}, ["device_map: chooses the devices by itself (leave out device)"]),
    (
        {"chat": False, "system": "x", "template": "{text}", **IMAGES, "device_map": "auto", "device": "cpu"},
        [
            "system: a system prompt needs the chat template (leave out chat: false)",
            "template: cannot be combined with the chat template (put its wording into the texts)",
            "chat: images need the chat template (leave out chat: false)",
            "device_map: chooses the devices by itself (leave out device)",
        ],
    ),
    (
        {"template": "{text}", "chat": True, "limit": 0, "generate": "20"},
        [
            "limit: 0 is not possible (give number of samples to take, in the order of the data, over all languages)",
            "generate: write max_new_tokens=20, and further pairs separated by commas",
            "template: cannot be combined with the chat template (put its wording into the texts)",
        ],
    ),
    (
        {"model": "", "template": "{text}", "chat": True},
        [
            "model: '' is not possible (give Hugging Face model id, model folder, or GGUF file)",
            "template: cannot be combined with the chat template (put its wording into the texts)",
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
    # options without a fault can still be checked
    assert (config is None) == bool(required)


def test_missing_options_are_all_named() -> None:
    config, faults = check({"limit": 3})
    assert config is None
    assert [str(fault) for fault in faults] == [
        "model: is missing (give Hugging Face model id, model folder, or GGUF file)",
        f"data: is missing (give {DATA})",
        "out: is missing (give run folder to create or continue, or its URL in an object store)",
    ]


def test_what_is_wrong_is_left_out_and_the_rest_is_kept() -> None:
    options = {**ASKED, "chat": False, "image_column": "image", "limit": 0, "keep_tokens": "last"}
    config, faults = check(options)
    assert len(faults) == 2
    assert config == Config(**ASKED, image_column="image", keep_tokens="last")


def test_contradictions_are_refused_in_python_too() -> None:
    with pytest.raises(
        ValueError, match=r"system: a system prompt needs the chat template .*; template: cannot"
    ):
        Config(**ASKED, system="x", template="{text}", chat=False)


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config, _ = check(
        {"model": "~/m", "data": "~/d.csv", "image_root": "~/i", "out": "~nobody-of-this-name/o"}
    )
    assert config is not None
    assert (config.model, config.data) == ("/home/someone/m", "/home/someone/d.csv")
    assert config.image_root == "/home/someone/i"
    assert config.out == "~nobody-of-this-name/o"


OPTIONS = {
    **Config.model_fields,
    **{f"generate.{name}": field for name, field in Generation.model_fields.items()},
    **{f"wandb.{name}": field for name, field in Tracking.model_fields.items()},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_described(name: str) -> None:
    description = OPTIONS[name].description
    assert description
    assert description[0].islower() or description.split()[0] in {"CSV,", "Hugging"}
    assert not description.endswith(".")
