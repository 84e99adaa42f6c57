"""The form is the config's own model: what it says is what an extraction is told."""

from pathlib import Path

import pytest

from actkit.config import Config
from actkit.demo import CAPTIONS, MODEL
from app.choices import BUNDLED_DATA, BUNDLED_MODEL
from app.form import APART, COLUMNS, FIRST, from_options, options, read_form
from app.settings import Settings

CHOSEN = {"model": BUNDLED_MODEL, "data": BUNDLED_DATA}


def test_every_option_is_offered_or_left_apart() -> None:
    names = [option.name for option in options()]
    assert [name for name in Config.model_fields if name not in APART] == names
    assert set(FIRST) | set(COLUMNS) <= set(names)
    assert set(Config.model_fields) >= APART
    kinds = {option.name: option.kind for option in options()}
    assert kinds["whiten"] == "switch"
    assert kinds["storage"] == kinds["chat"] == kinds["quantization"] == "choice"
    assert kinds["limit"] == kinds["batch_size"] == kinds["generate"] == "text"


def test_an_untouched_form_asks_for_the_defaults(settings: Settings) -> None:
    values = {option.name: option.default for option in options()}
    config, faults, asked = read_form(settings, {**values, **CHOSEN, "layers": "all"})
    assert faults == {}
    assert asked == {"model": str(MODEL), "data": str(CAPTIONS)}
    assert config == Config(model=str(MODEL), data=str(CAPTIONS), out="-")


def test_what_is_filled_in(settings: Settings) -> None:
    config, faults, _ = read_form(
        settings,
        {
            **CHOSEN,
            "layers": "0-3 mlp_5",
            "languages": ["english", "arabic"],
            "limit": "20",
            "whiten": True,
            "chat": "false",
            "generate": "max_new_tokens=3,do_sample=true,seed=7",
            "save": "residual,norm",
            "text_column": "caption",
        },
    )
    assert faults == {}
    assert config is not None
    assert (config.layers, config.languages, config.limit) == ("0-3 mlp_5", ("english", "arabic"), 20)
    assert (config.whiten, config.chat, config.save) == (True, False, ("residual", "norm"))
    assert config.generate is not None
    assert config.generate.seed == 7
    # and back, as a YAML file would
    values, refused = from_options(settings, config.model_dump(mode="json", exclude_defaults=True))
    assert refused == []
    assert read_form(settings, values)[0] == config


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("limit", "many", "'many' is not possible"),
        ("limit", "0", "'0' is not possible"),
        ("layers", "ten", "`ten`"),
        ("batch_size", "0", "a batch holds at least 1 prompt"),
        ("device", "tpu", "'tpu' is not possible"),
        ("generate", "max_new_tokens", "max_new_tokens=20"),
        ("template", "no place", "{text}"),
        ("model", "/etc", "not an available model"),
        ("model", "google/gemma-3-4b-it", "not an available model"),
        ("model", "", "not an available model"),
        ("data", "../../etc/passwd", "outside data"),
        ("data", "/etc/passwd", "outside data"),
        ("data", "missing.csv", "not a prompt file"),
    ],
)
def test_what_is_wrong_stands_at_its_field(settings: Settings, field: str, value: str, fault: str) -> None:
    config, faults, _ = read_form(settings, {**CHOSEN, field: value})
    assert config is None
    assert list(faults) == [field]
    assert fault in faults[field]


def test_an_id_can_be_typed_where_the_settings_allow_it(settings: Settings) -> None:
    free = settings.model_copy(update={"typed_models": True})
    config, _, _ = read_form(free, {**CHOSEN, "model": "google/gemma-3-4b-it"})
    assert config is not None
    assert config.model == "google/gemma-3-4b-it"
    for refused in ("../../etc", "/etc/passwd", "a/b/c", "a/..", "~/x", "https://x/y"):
        assert "model" in read_form(free, {**CHOSEN, "model": refused})[1], refused


def test_a_file_may_ask_for_what_the_app_does_not_offer(settings: Settings, tmp_path: Path) -> None:
    asked = {
        "model": "/etc",
        "data": str(CAPTIONS),
        "image_root": str(tmp_path),
        "speed": 3,
        "tokens": "last",
        "out": "x",
    }
    values, faults = from_options(settings, asked)
    assert values == {"data": BUNDLED_DATA}
    assert [fault.where for fault in faults] == ["model", "image_root", "speed", "tokens"]
    assert str(faults[-1]) == "tokens: is not an option (did you mean keep_tokens?)"
