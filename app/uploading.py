"""Files from browsers: whole whatever the order of their pieces, and never larger than is allowed."""

from collections.abc import Mapping
from threading import Lock
from typing import Any

import panel_material_ui as pmui
import param


class Upload(pmui.FileInput):  # type: ignore[misc]
    """A button that takes one file.

    Pieces are handled by several threads, and the last may come before another. The browser is asked to
    send no more than ``max_file_size``, and is not trusted to obey.
    """

    fault = param.String("", doc="why the last file was not taken")

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
        if self._buffer:  # all of it is there
            self.fault = ""
            self._flush_buffer()
            self._send_msg({"status": "finished"})

    def _refuse(self, why: str) -> None:
        self._file_buffer.clear()
        self.fault = ""  # the same fault twice is news twice
        self.fault = why
        self._send_msg({"status": "error", "error": why})
