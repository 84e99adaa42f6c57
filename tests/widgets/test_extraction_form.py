"""The form of a notebook: what is typed is checked, and is what an extraction is asked for."""

from pathlib import Path

import pytest

from actkit.config import Config
from actkit.demo import CAPTIONS, MODEL
from actkit.errors import InputError
from actkit.widgets import ExtractionForm


@pytest.fixture
def form(tmp_path: Path, user_cache: Path) -> ExtractionForm:
    return ExtractionForm(model=MODEL, data=CAPTIONS, out=tmp_path / "run")


def told(form: ExtractionForm, name: str) -> str:
    return str(form._notes[name].value)


def test_its_options_are_those_of_the_config(form: ExtractionForm, tmp_path: Path) -> None:
    assert form.fields.keys() <= Config.model_fields.keys()
    form.fields["languages"].value = " english "
    form.fields["batch_size"].value = "8"
    form.fields["keep_tokens"].value = "content"
    config = Config(**form.options)
    assert config.out == str(tmp_path / "run")
    assert (config.batch_size, config.languages, config.keep_tokens) == (8, ("english",), "content")
    assert config.limit is None
    assert Config(**form.options) == Config(**config.model_dump())


def test_defaults_are_those_of_the_config() -> None:
    form = ExtractionForm()
    for name, field in form.fields.items():
        default = Config.model_fields[name].get_default()
        assert field.value == (
            "" if default is None or Config.model_fields[name].is_required() else str(default)
        )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layers", "0-3 mlp_all", "4 layers: 0-3; mlp: 10 layers: 0-9"),
        ("layers", "12", "the model has no layer 12 (it has 10 layers, 0–9)"),
        ("layers", "every", "cannot read `every`"),
        ("batch_size", "0", "a batch holds at least 1 prompt"),
        ("limit", "many", "is not possible"),
        ("max_tokens", "<b>", "&lt;b&gt;"),
    ],
)
def test_what_is_typed_is_checked(form: ExtractionForm, name: str, value: str, message: str) -> None:
    form.fields[name].value = value
    assert message in told(form, name)
    form.fields[name].value = "all" if name == "layers" else "7"
    assert message not in told(form, name)


def test_a_plan_is_shown(form: ExtractionForm) -> None:
    form.fields["limit"].value = "40"
    form.plan()
    assert "<td>40 in english, arabic</td>" in form._plan.value
    form.fields["limit"].value = "50"
    assert form._plan.value == ""  # it was of another choice


def test_everything_that_is_wrong_is_listed(form: ExtractionForm, tmp_path: Path) -> None:
    form.fields["data"].value = str(tmp_path / "<i>.csv")
    form.fields["layers"].value = "0-12"
    form.plan()
    assert form._plan.value.count("<li>") == 2
    assert "&lt;i&gt;.csv" in form._plan.value
    assert not (tmp_path / "run").exists()


def test_what_has_no_field_is_refused() -> None:
    with pytest.raises(
        InputError,
        match=r"dtype: is not a field of the form \(pass it to extract along with the form's options\)",
    ):
        ExtractionForm(dtype="float32")


def test_the_bundled_model_is_offered(form: ExtractionForm) -> None:
    assert form.fields["model"].options == (str(MODEL),)


def test_the_language_model_is_offered_once_it_is_there(cached_llm: Path) -> None:
    form = ExtractionForm()
    assert form.fields["model"].options == (str(MODEL), str(cached_llm))
    form.fields["model"].value = str(cached_llm)
    form.fields["layers"].value = "all"
    assert "3 layers: 0-2" in told(form, "layers")
