"""How long this machine may take for a hostile file, measured by inflating zeros.

On a busy virtual machine new memory takes many times as long as on a quiet one, so a
limit in seconds would fail there.
"""

from __future__ import annotations

import time
import zlib

MAX_TIMES = 5
"""A file may take this many times as long as inflating `NUM_BYTES`."""
NUM_BYTES = 2**29


def limit_s() -> float:
    """Upper limit of processor time for one file, seconds."""
    packed = zlib.compress(bytes(NUM_BYTES), level=1)
    began_s = time.process_time()
    assert len(zlib.decompress(packed)) == NUM_BYTES
    return MAX_TIMES * (time.process_time() - began_s)
