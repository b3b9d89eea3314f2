# SPDX-License-Identifier: Apache-2.0
"""How payloads are stored in packs: as they are, or as one zstd frame (FORMAT.md, section 4.2).

Pure. Knows when compression pays and how a hostile frame is refused: a frame says how much it will unpack to,
so nothing is unpacked that says anything else than the index. Its surprise: the library is loaded only when
the first compressed payload is met, because most commands never meet one.
"""

from __future__ import annotations

from ..errors import StoreCorrupt
from .pack import MAX_EXPANDED, PLAIN, ZSTD

# Of the original size. Reading has to unpack from now on: an eighth is the least that is worth it.
_PAYS_BELOW = 7 / 8
# Python sources on one core: level 3 gives 3.74:1 at 236 MB/s, 9 gives 4.11:1 at 57, 12 gives 4.16:1 at 18.
_LEVEL = 9


def compressed(data: bytes) -> bytes | None:
    """The content as one zstd frame; None when that would save less than an eighth."""
    if not 0 < len(data) <= MAX_EXPANDED:
        return None
    import zstandard

    frame = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(data)
    return frame if len(frame) < len(data) * _PAYS_BELOW else None


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
            return zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise StoreCorrupt("payload is no whole zstd frame") from error
    raise StoreCorrupt("payload does not unpack to the size in the index")
