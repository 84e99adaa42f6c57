"""File uploads, assembled from chunks in any order and limited in size."""

from collections.abc import Mapping
from threading import Lock
from typing import Any

import panel_material_ui as pmui
import param


class Upload(pmui.FileInput):  # type: ignore[misc]
    """Button that uploads one file.

    Several threads handle the chunks, so the last may arrive before others. The browser knows the limit
    ``max_file_size``, but the server enforces it.
    """

    fault = param.String("", doc="why the last file was rejected")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._lock = Lock()

    def _handle_msg(self, msg: Mapping[str, Any]) -> None:
        if msg["status"] == "upload_event":
            with self._lock:
                self._take(msg)
        elif msg["status"] == "error":
            self._refuse(str(msg.get("error")))
        elif msg["status"] == "initializing":
            with self._lock:
                self._file_buffer.clear()

    def _take(self, msg: Mapping[str, Any]) -> None:
        held = (piece for file in self._file_buffer.values() for piece in file["chunks"].values())
        if self.max_file_size and sum(map(len, held)) + len(msg["data"]) > self.max_file_size:
            self._refuse(f"{msg['name']}: is larger than {self.max_file_size:,} bytes")
            return
        self._process_chunk(msg)
        if self._buffer:  # the file is complete
            self.fault = ""
            self._flush_buffer()
            self._send_msg({"status": "finished"})

    def _refuse(self, why: str) -> None:
        self._file_buffer.clear()
        self.fault = ""  # so that watchers see a repeated fault
        self.fault = why
        self._send_msg({"status": "error", "error": why})
