"""Stored scan of the rows of a run, so that later parts need not read and tokenize all rows again."""

import hashlib
import importlib.metadata
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...config import Config
from ...data_scan import Scan
from ...regular_files import MB, read_regular
from ...sources import Source
from ...store.folders import Folder
from ...store.run_folder import SCAN
from ...store.writer import storage_errors
from ..models.checkpoint import Checkpoint, small_files
from ..prompts.encoder import Encoder
from .prompt_lengths import Measure

_MOST_BYTES = 4096 * MB
_DIGEST_BYTES = 32
_SIZE_BYTES = 8  # of the size of the header
# dtypes of the arrays of a file, in order; each has an entry per sample
_DTYPES = {"accepted": "<i8", "checks": "<u8", "lengths": "<i4", "stored": "<i4", "truncated": "|b1"}
# what the key covers by content, and what does not affect which rows are taken or how they are tokenized
_NOT_IN_KEY = {"adapter", "data", "device", "model", "out", "revision", "wandb"}
_VERSIONS = ("actkit", "tokenizers", "transformers")


@dataclass(frozen=True)
class ScanCache:
    """The file in a run folder that holds the scan of its rows, and the lengths of its prompts.

    The file is used only for the same data, options, tokenizer and versions; rows that are read later are
    compared with the hashes in it.

    Parameters
    ----------
    path
        The file, which need not exist.
    key
        SHA-256 of everything that a scan depends on, as hexadecimal digits.
    source
        Source of the rows.
    """

    path: Path
    key: str
    source: Source

    @classmethod
    def of(
        cls, run: Path, config: Config, source: Source, checkpoint: Checkpoint, encoder: Encoder
    ) -> "ScanCache | None":
        """Return the cache of a run; None if its data or prompts have no digest, or columns have faults."""
        is_text = config.image_column is None and checkpoint.gguf is None
        if source.digest is None or source.faults or not is_text:
            return None
        described: dict[str, Any] = {
            "data": source.digest,
            "options": config.model_dump(mode="json", exclude=_NOT_IN_KEY),
            "prompts": dict(encoder.description),
            "tokenizer": {
                file.name: hashlib.sha256(file.read_bytes()).hexdigest()
                for file in small_files(checkpoint.folder)
            },
            "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
        }
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        return cls(run / SCAN, key, source)

    def load(self, measure: Measure) -> Scan | None:
        """Return the stored scan, and give the lengths of the prompts to a measure without any.

        Returns
        -------
        Scan or None
            None if there is no such file, or it belongs to other data or options, or is damaged.
        """
        if (stored := self._stored()) is None:
            return None
        header, body = stored
        with suppress(KeyError, TypeError, ValueError):  # of a file that another program wrote
            arrays, start = {}, 0
            for name, dtype in _DTYPES.items():
                arrays[name] = np.frombuffer(body, dtype, header["samples"], start)
                start += arrays[name].nbytes
            scan = Scan(
                accepted=arrays["accepted"],
                checks=arrays["checks"],
                label_dtypes=header["label_dtypes"],
                languages=header["languages"],
                skipped=tuple((where, what) for where, what in header["skipped"]),
                digest=str(self.source.digest),
            )
            measure.restore(
                arrays["lengths"],
                arrays["stored"],
                arrays["truncated"],
                first_is_content=header["first_is_content"],
            )
            return scan
        return None

    def save(self, folder: Folder, scan: Scan, measure: Measure) -> None:
        """Write a scan to the run folder, unless it is there.

        Raises
        ------
        StorageError
            If the folder cannot be written.
        """
        if self._stored() is None:
            with storage_errors("cannot write the scan of the rows"):
                folder.replace(SCAN, self._content(scan, measure))

    def _stored(self) -> tuple[dict[str, Any], memoryview] | None:
        """Return the header and the arrays of the file if it is intact and has this key."""
        try:
            content = memoryview(read_regular(self.path, _MOST_BYTES, follow=False))
        except OSError:
            return None
        digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            return None
        start = _SIZE_BYTES + int.from_bytes(body[:_SIZE_BYTES], "little")
        with suppress(KeyError, TypeError, ValueError):
            header: dict[str, Any] = json.loads(bytes(body[_SIZE_BYTES:start]))
            if header["key"] == self.key:
                return header, body[start:]
        return None

    def _content(self, scan: Scan, measure: Measure) -> bytes:
        """Return the bytes of the file for a scan."""
        header = json.dumps(
            {
                "key": self.key,
                "samples": len(scan),
                "first_is_content": measure.first_is_content,
                "label_dtypes": scan.label_dtypes,
                "languages": scan.languages,
                "skipped": scan.skipped,
            }
        ).encode()
        columns = {
            "accepted": scan.accepted,
            "checks": scan.checks,
            "lengths": measure.lengths,
            "stored": measure.stored,
            "truncated": measure.truncated,
        }
        parts = [len(header).to_bytes(_SIZE_BYTES, "little"), header]
        parts += [columns[name].astype(dtype).tobytes() for name, dtype in _DTYPES.items()]
        body = b"".join(parts)
        return hashlib.sha256(body).digest() + body
