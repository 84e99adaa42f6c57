"""Compression of bfloat16 values to the bytes that Blosc gives for the same values in float32."""

import struct

import numpy as np
from numcodecs.blosc import BITSHUFFLE, Blosc

# version, version of LZ4, flags, bytes of a value, bytes of all values, of a block and of the frame, and the
# offset of the block
_HEADER = struct.Struct("<4BIIII")


class Bfloat16Codec:
    """Compresses the bits of bfloat16 values as Blosc compresses the values in float32, in half the time.

    Parameters
    ----------
    name, level
        Compressor and level of Blosc; the bits are shuffled.

    Notes
    -----
    Half of the bits of each float32 value are zero. Blosc shuffles the bits of a block and compresses each
    byte of the values as a stream of its own, so the frame of the float32 values is that of the bfloat16
    bits with two streams of zeros in front and another header (docs/decisions/0059). This is not assumed: for
    each number of values, the first array is compressed in both ways. If the frames differ by anything else,
    or values fill more than one block, they are converted to float32 and compressed by Blosc.
    """

    def __init__(self, name: str, level: int) -> None:
        self._codec = Blosc(name, level, BITSHUFFLE)
        # by number of values: the headers of both frames, and the streams of zeros; None if frames differ
        self._differences: dict[int, tuple[tuple[int, ...], tuple[int, ...], bytes] | None] = {}

    def encode(self, bits: np.ndarray) -> bytes:
        """Return the frame of the float32 values.

        Parameters
        ----------
        bits
            Bits of bfloat16 values, contiguous, dtype uint16.
        """
        if bits.size not in self._differences:
            return self._compare(bits)
        difference = self._differences[bits.size]
        if difference is None:
            return self._encode_float32(bits)
        frame = self._codec.encode(bits)
        before, after, zeros = difference
        *common, size, offset = _HEADER.unpack_from(frame)
        if (*common, offset) != before:  # such as values that cannot be compressed, which Blosc copies
            return self._encode_float32(bits)
        header = _HEADER.pack(*after[:-1], size + len(zeros), after[-1])
        return b"".join([header, zeros, memoryview(frame)[_HEADER.size :]])

    def _compare(self, bits: np.ndarray) -> bytes:
        """Compress an array in both ways, and record how the frames differ."""
        expected, frame = self._encode_float32(bits), self._codec.encode(bits)
        self._differences[bits.size] = None
        if min(len(expected), len(frame)) > _HEADER.size:
            *before, size, offset = _HEADER.unpack_from(frame)
            *after, total, start = _HEADER.unpack_from(expected)
            zeros = expected[_HEADER.size : _HEADER.size + total - size]
            one_block = before[-1] == before[-2] and offset == start == _HEADER.size
            if one_block and expected[_HEADER.size :] == zeros + frame[_HEADER.size :]:
                self._differences[bits.size] = (*before, offset), (*after, start), zeros
        return expected

    def _encode_float32(self, bits: np.ndarray) -> bytes:
        wide = bits.astype(np.uint32)
        wide <<= 16
        return bytes(self._codec.encode(wide.view(np.float32)))


def bits_of(value: float) -> int:
    """Return the bits in bfloat16 of a number that it represents exactly, such as NaN."""
    return int(np.float32(value).view(np.uint32)) >> 16
