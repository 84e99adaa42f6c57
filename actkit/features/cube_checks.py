"""Check that autoencoders fit a cube: component, layers, width, model, and intact weights."""

import warnings
from collections.abc import Iterator

import xarray as xr

from ..canonical import Cube, as_cube, require
from ..errors import CorruptError, Fault, InputError, MissingError
from .sae import Sae
from .sae_origin import ADAPTER, module_name
from .sae_set import SaeSet

# names that TransformerLens and SAELens give to models
_ALIASES = {"gpt2-small": "gpt2"}
_SHA256 = 64  # digits; a commit has 40


def check_saes(cube: Cube, saes: SaeSet) -> None:
    """Check that autoencoders can be applied to a cube; every function that does so calls this first.

    The weights of all layers are read once, one layer at a time.

    Parameters
    ----------
    cube
        Cube or run folder.
    saes
        Autoencoders from :func:`actkit.load_saes` or :func:`actkit.train_saes`.

    Raises
    ------
    InputError
        With all faults: the cube lacks the component, its tokens or a layer; another width or module; damaged
        or missing weights, or NaN in them; an autoencoder that was trained on another version of the model.

    Warns
    -----
    UserWarning
        If a published autoencoder names another model, which may be a base model of this one.
    """
    cube = as_cube(cube)
    where = f"autoencoders of {saes.component}" + (f" in {saes.path}" if saes.path else "")
    if not len(saes):
        raise InputError([Fault(where, "there are none", "load or train at least one layer")])
    try:
        require(cube, saes.component)
    except MissingError as error:
        raise InputError([Fault(where, str(error))]) from error
    faults = list(_layer_faults(cube, saes, where))
    names = set()
    for layer in saes:
        try:
            sae = saes[layer]
        except (CorruptError, InputError) as error:
            faults += error.faults
            continue
        faults += _sae_faults(cube, sae, layer, saes.component)
        names.add(str(sae.metadata.get("model_name") or ""))
    if faults:
        heading = f"the autoencoders do not fit the cube: {len(faults)} fault" + "s" * (len(faults) > 1)
        raise InputError(faults, heading)
    model = str(cube.attrs.get("model", ""))
    if others := sorted(name for name in names if name and model and _key(name) != _key(model)):
        what = f"are of the model {others[0]}, but the cube is of {model}"
        warnings.warn(f"{where} {what}: features may mean something else", stacklevel=2)


def _layer_faults(cube: xr.Dataset, saes: SaeSet, where: str) -> Iterator[Fault]:
    layers = cube.layer.values
    has = cube.coords.get(f"has_{saes.component}")
    captured = layers.tolist() if has is None else layers[has.values].tolist()
    if missing := [layer for layer in saes if layer not in captured]:
        hint = f"the cube has it at {captured}; give layers= when the autoencoders are loaded"
        yield Fault(where, f"the cube has no {saes.component} at layers {missing}", hint)


def _sae_faults(cube: xr.Dataset, sae: Sae, layer: int, component: str) -> Iterator[Fault]:
    where = f"autoencoder of {component}, layer {layer}"
    if (sae.layer, sae.component) != (layer, component):
        yield Fault(where, f"is of {sae.component}, layer {sae.layer}")
    width = cube.sizes["hidden"]
    if sae.hidden != width:
        what = f"is for activations of width {sae.hidden:,}, but those of the cube have {width:,}"
        yield Fault(where, what, "use one that was trained on this model")
    expected = module_name(str(cube.attrs.get("model_type")), layer, sae.component)
    module = str(sae.metadata.get("hf_hook_name") or "").removesuffix(".output")
    # the path of a block depends on the class of the model, that of a module within it does not
    if expected is not None and module and _within(module) != _within(expected):
        what = f"is of the output of `{module}`, but the cube holds that of `{expected}`"
        yield Fault(where, what, "use one of the same module")
    yield from _model_faults(cube, sae, where)


def _model_faults(cube: xr.Dataset, sae: Sae, where: str) -> Iterator[Fault]:
    if "actkit_version" not in sae.metadata:  # others record names only
        return
    hint = "train one on this cube, or extract a cube with the other model"
    trained, present = sae.metadata.get("model_revision"), cube.attrs.get("model_revision")
    if trained and present and len(trained) == len(present) and trained != present:
        kind = "digest" if len(trained) == _SHA256 else "revision"
        model = sae.metadata.get("model_name", "the model")
        what = f"was trained on {model} of {kind} {trained[:8]}…, but the cube is of {kind} {present[:8]}…"
        yield Fault(where, what, hint)
    elif sae.metadata.get(ADAPTER) != cube.attrs.get(ADAPTER):
        yield Fault(where, "was trained on the model with another adapter, or with none", hint)


def _within(module: str) -> str:
    """Return the path of a module from the number of its block on."""
    parts = module.split(".")
    return ".".join(parts[next((i for i, part in enumerate(parts) if part.isdigit()), 0) :])


def _key(model: str) -> str:
    name = model.rstrip("/").rpartition("/")[2].lower()
    return _ALIASES.get(name, name)
