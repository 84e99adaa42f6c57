"""The sparse autoencoders of the layers of one component, loaded one at a time."""

from collections.abc import Callable, Iterator, Mapping

from ..schema import Component
from .sae import Sae


class SaeSet(Mapping[int, Sae]):
    """Sparse autoencoders by layer, of one component; the weights of a layer are read when it is first used."""

    def __init__(self, component: Component, loaders: Mapping[int, Callable[[], Sae]]) -> None:
        self.component = component
        self._loaders = dict(sorted(loaders.items()))

    @property
    def layers(self) -> list[int]:
        """Layers that have an autoencoder, in ascending order."""
        return list(self._loaders)

    def __getitem__(self, layer: int) -> Sae:
        """Return the autoencoder of a layer; it is not kept, so that a loop holds one at a time."""
        return self._loaders[layer]()

    def __iter__(self) -> Iterator[int]:
        return iter(self._loaders)

    def __len__(self) -> int:
        return len(self._loaders)
