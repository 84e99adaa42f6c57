"""Lengths and faults of all rows, measured before the model is loaded."""

import hashlib
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...config import Config
from ...images import read_image
from ...schema import CONTENT_KINDS
from ...sources import Row
from ..capture.spec import most_kept
from ..capture.vision import vision_lengths
from ..models.architecture import Architecture
from ..prompts.encoder import Encoder, Prompt

KEPT_TOKENS = 2**23  # in 40 MB


class Measure:
    """Measurement of the rows of a run, which stores the lengths of valid rows.

    The tokens of text prompts are cached, from the first sample up to :data:`KEPT_TOKENS` in total.

    Parameters
    ----------
    config
        The options.
    architecture
        Architecture of the model.
    encoder
        Encoder of rows into prompts.
    vision
        Whether blocks of the vision tower are captured.
    """

    def __init__(self, config: Config, architecture: Architecture, encoder: Encoder, *, vision: bool) -> None:
        self._config = config
        self._architecture = architecture
        self._encoder = encoder
        self._vision = vision
        self._new = config.generate.max_new_tokens if config.generate else 0
        self._lengths, self._stored, self._patches = array("i"), array("i"), array("i")
        self._truncated = array("b")
        self._images = bytearray()
        self._ids, self._kinds = array("i"), array("b")
        self._ends = array("q", [0])
        self.first_is_content = True

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """Return the fault of each row; an empty string for valid rows."""
        faults = [""] * len(rows)
        images: list[Any] | None = None
        digests = [""] * len(rows)
        if self._config.image_column:
            images = []
            for index, row in enumerate(rows):
                image, fault, digests[index] = read_image(row.image, self._config.image_folder)
                images.append(image)
                faults[index] = f"`{self._config.image_column}` {fault}" if fault else ""
        sound = [index for index, fault in enumerate(faults) if not fault]
        prompts = self._encoder.encode(
            [rows[index].text for index in sound], images and [images[index] for index in sound]
        )
        for index, prompt in zip(sound, prompts, strict=True):
            faults[index] = prompt if isinstance(prompt, str) else self._too_long(prompt)
            if isinstance(prompt, Prompt) and not faults[index]:
                self._remember(prompt, digests[index])
        return faults

    def restore(
        self, lengths: np.ndarray, stored: np.ndarray, truncated: np.ndarray, *, first_is_content: bool
    ) -> None:
        """Store what was measured of the rows of a text in an earlier process; their tokens are not cached.

        Parameters
        ----------
        lengths, stored, truncated, first_is_content
            The attributes of these names, dims ``(sample,)``.
        """
        self._lengths = array("i", lengths.astype(np.int32).tobytes())
        self._stored = array("i", stored.astype(np.int32).tobytes())
        self._truncated = array("b", truncated.astype(np.int8).tobytes())
        self.first_is_content = first_is_content

    def _too_long(self, prompt: Prompt) -> str:
        most = self._architecture.positions
        if most is None or len(prompt.ids) + self._new <= most or self._new >= most:
            return ""
        return (
            f"has {len(prompt.ids)} tokens, which leaves no room for {self._new} new ones: the model takes "
            f"{most} tokens; set max_tokens to {most - self._new} or less"
        )

    def _remember(self, prompt: Prompt, digest: str) -> None:
        self._lengths.append(len(prompt.ids))
        self._stored.append(most_kept(prompt.kinds, self._config.keep_tokens, new_tokens=self._new))
        self._truncated.append(prompt.truncated)
        # unless every prompt begins with a special or template token, position 0 may be an attention sink,
        # and does not count as content
        self.first_is_content &= int(prompt.kinds[0]) not in CONTENT_KINDS
        if prompt.features:
            self._images += bytes.fromhex(digest)[:8]  # enough to detect a change
        elif len(self._ids) + len(prompt.ids) <= KEPT_TOKENS and len(self._ends) == len(self._lengths):
            self._ids.frombytes(prompt.ids.astype(np.int32).tobytes())
            self._kinds.frombytes(prompt.kinds.tobytes())
            self._ends.append(len(self._ids))
        if self._vision and prompt.features:
            self._patches.append(vision_lengths(self._architecture, prompt.features))

    def prompts(self, samples: Sequence[int]) -> list[Prompt] | None:
        """Return the prompts of samples, or None unless all of them are cached."""
        if max(samples) >= len(self._ends) - 1:
            return None
        ids, kinds = np.frombuffer(self._ids, np.int32), np.frombuffer(self._kinds, np.int8)
        parts = [slice(self._ends[sample], self._ends[sample + 1]) for sample in samples]
        return [
            Prompt(ids[part], kinds[part], bool(self._truncated[sample]))
            for part, sample in zip(parts, samples, strict=True)
        ]

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each prompt, dims ``(sample,)``."""
        return np.array(self._lengths, dtype=np.int32)

    @property
    def stored(self) -> np.ndarray:
        """Maximum number of positions kept of each prompt, dims ``(sample,)``."""
        return np.array(self._stored, dtype=np.int32)

    @property
    def truncated(self) -> np.ndarray:
        """Whether ``max_tokens`` cut the prompt, dims ``(sample,)``."""
        return np.array(self._truncated, dtype=bool)

    @property
    def patches(self) -> int:
        """Maximum number of patches of a sample."""
        return max(self._patches, default=0)

    @property
    def images_digest(self) -> str:
        """SHA-256 over the truncated SHA-256 digests of all images, in order."""
        return hashlib.sha256(self._images).hexdigest()

    def image_hashes(self, samples: range) -> bytes:
        """Return 8 bytes of the digest of the image of each sample; nothing for texts."""
        return bytes(self._images[8 * samples.start : 8 * samples.stop])

    def learn_images(self, samples: range, hashes: bytes) -> None:
        """Store what :meth:`image_hashes` returned for samples in another process."""
        missing = 8 * samples.stop - len(self._images)
        self._images += bytes(max(missing, 0) if hashes else 0)
        self._images[8 * samples.start : 8 * samples.start + len(hashes)] = hashes

    def knows_image(self, sample: int, digest: str) -> bool:
        """Return whether the image of a sample had this SHA-256 digest."""
        return self._images[8 * sample : 8 * sample + 8] == bytes.fromhex(digest)[:8]
