"""Memory that threads freed, and the C library keeps: as little of it as can be, where that is glibc."""

import ctypes
import platform

_M_ARENA_MAX = -8  # of glibc's malloc.h


def share_heap() -> None:
    """Let threads that begin from now on take memory from one heap; by default each has one of its own."""
    if _is_glibc():
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def trim_heap() -> None:
    """Give back what lies free between what is used: passes of many sizes leave ever more of it."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
