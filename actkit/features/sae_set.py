"""The sparse autoencoders of the layers of one component, loaded one at a time."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import MissingError
from ..schema import Component

if TYPE_CHECKING:  # torch is imported when weights are read
    from .sae import Sae


@dataclass(frozen=True)
class SaeSize:
    """Architecture and size of a stored autoencoder, known without reading its weights."""

    architecture: str
    n_features: int
    hidden: int


class SaeSet(Mapping[int, "Sae"]):
    """Sparse autoencoders by layer, of one component; the weights of a layer are read when it is used.

    Parameters
    ----------
    component
        Component of the activations.
    loaders
        Function of each layer that reads its autoencoder.
    path
        Folder of the files, or the name of their repository; empty if there are none.
    sizes
        Architecture and size of each autoencoder, as far as known.

    Examples
    --------
    >>> SaeSet("residual", {4: lambda: ..., 2: lambda: ...})
    <SaeSet of residual, layers 2, 4>
    """

    def __init__(
        self,
        component: Component,
        loaders: Mapping[int, Callable[[], "Sae"]],
        path: str = "",
        sizes: Mapping[int, SaeSize] | None = None,
    ) -> None:
        self.component = component
        self.path = path
        self.sizes = dict(sorted((sizes or {}).items()))
        self._loaders = dict(sorted(loaders.items()))

    @property
    def layers(self) -> list[int]:
        """Layers that have an autoencoder, in ascending order."""
        return list(self._loaders)

    def __getitem__(self, layer: int) -> "Sae":
        """Return the autoencoder of a layer; it is not kept, so that a loop holds one at a time."""
        if layer not in self._loaders:
            raise MissingError(f"there is no autoencoder of layer {layer}; there are {self.layers}")
        return self._loaders[layer]()

    def __iter__(self) -> Iterator[int]:
        return iter(self._loaders)

    def __len__(self) -> int:
        return len(self._loaders)

    def __repr__(self) -> str:
        layers = ", ".join(map(str, self.layers)) or "none"
        where = f", in {self.path}" if self.path else ""
        return f"<SaeSet of {self.component}, layers {layers}{where}>"

    def _repr_html_(self) -> str:
        from html import escape

        rows = []
        for layer in self.layers:
            size = self.sizes.get(layer)
            cells = (size.architecture, f"{size.n_features:,}", f"{size.hidden:,}") if size else ("", "", "")
            rows.append("".join(f"<td>{escape(str(cell))}</td>" for cell in (layer, *cells)))
        names = ("layer", "architecture", "features", "width of the activations")
        head = "".join(f"<th>{name}</th>" for name in names)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        caption = escape(
            f"Sparse autoencoders of {self.component}" + (f" in {self.path}" if self.path else "")
        )
        return f"<table><caption>{caption}</caption><tr>{head}</tr>{body}</table>"
