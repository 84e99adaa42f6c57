"""Freed memory is returned to the system."""

import platform

import numpy as np
import psutil
import pytest

from actkit.extraction.models.devices import trim_heap


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_free_memory_of_a_fragmented_heap_is_returned() -> None:
    process, size = psutil.Process(), 64 * 1024  # too small for a mapping of its own
    blocks = [np.ones(size, dtype=np.uint8) for _ in range(2000)]
    used = [block for index, block in enumerate(blocks) if index % 2]
    blocks.clear()
    before = process.memory_info().rss
    trim_heap()
    assert before - process.memory_info().rss > 0.8 * size * (2000 - len(used))
    assert all(block.all() for block in used)
