# SPDX-License-Identifier: Apache-2.0
"""How payloads are stored in packs: as they are, or as one zstd frame (FORMAT.md, section 4.2).

Pure. Knows when compression pays and how a hostile frame is refused: a frame says how much it will unpack to,
so nothing is unpacked that says anything else than the index. Its surprise: the library is loaded only when
the first compressed payload is met, because most commands never meet one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import StoreCorrupt
from .pack import MAX_EXPANDED, PLAIN, ZSTD

# Of the original size. Reading has to unpack from now on: an eighth is the least that is worth it.
_PAYS_BELOW = 7 / 8
# Contents below 256 KiB of ten environments on one core, 2.96:1 at 205 MB/s. Level 1 gives 2.86:1 at 280,
# level 6 3.11:1 at 100, level 9 3.15:1 at 40: more time than it is worth, even for what nobody uses.
_LEVEL = 3
# One for each thread: it is no smaller than what it unpacks, and making it takes longer than using it.
_kept = threading.local()


def compressed(data: bytes) -> bytes | None:
    """The content as one zstd frame; None when that would save less than an eighth."""
    return compressed_all([data])[0]


def compressed_all(contents: Sequence[bytes], threads: int = 1) -> list[bytes | None]:
    """Each content as one zstd frame, or None; together they should fit into memory twice.

    Equal to one after the other, in half of the time even on one core: the library is asked once, and lets go
    of Python's lock once.
    """
    import zstandard

    fitting: list[Any] = [data for data in contents if 0 < len(data) <= MAX_EXPANDED]
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True)
    frames: Iterator[Any]
    if len(fitting) > 1 and "multi_compress_to_buffer" in zstandard.backend_features:
        frames = iter(compressor.multi_compress_to_buffer(fitting, threads=threads))
    else:  # The library may have been built without it.
        frames = map(compressor.compress, fitting)
    return [_if_it_pays(data, next(frames)) if 0 < len(data) <= MAX_EXPANDED else None for data in contents]


def _if_it_pays(data: bytes, frame: Any) -> bytes | None:
    return bytes(frame) if len(frame) < len(data) * _PAYS_BELOW else None


def expanded(stored: bytes, codec: int, size: int) -> bytes:
    """The content of a payload.

    Raises:
        StoreCorrupt: it does not unpack to exactly `size` bytes.
    """
    if codec == PLAIN:
        return stored
    import zstandard

    try:
        # The frame is asked first: what it says is what the decompressor would allocate.
        if codec == ZSTD and size <= MAX_EXPANDED and zstandard.frame_content_size(stored) == size:
            if not hasattr(_kept, "decompressor"):
                _kept.decompressor = zstandard.ZstdDecompressor()
            content: bytes = _kept.decompressor.decompress(stored, allow_extra_data=False)
            return content
    except zstandard.ZstdError as error:
        raise StoreCorrupt("payload is no whole zstd frame") from error
    raise StoreCorrupt("payload does not unpack to the size in the index")
