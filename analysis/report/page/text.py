"""Bytes as text inside a page: deflated, then 4 bytes in 5 letters, a sixteenth less than base64.

`js/decode.js` reads it.

Shape suffixes: W words of 4 bytes.
"""

from __future__ import annotations

import zlib
from string import ascii_letters, digits

import numpy as np

ALPHABET = digits + ascii_letters + "!#$%()*+-./:;=?@[]^_{|}"
"""85 letters, none of which means anything to HTML inside a script element."""
# Level 9 takes three times as long for one per cent.
_LEVEL = 6


def to_text(raw: bytes) -> str:
    """Return the number of deflated bytes, a line break, and their letters."""
    deflated = zlib.compress(raw, _LEVEL)
    word_W = np.frombuffer(deflated + bytes(-len(deflated) % 4), ">u4").astype(np.int64)
    letters_W5 = word_W[:, None] // 85 ** np.arange(4, -1, -1) % 85
    codes = np.frombuffer(ALPHABET.encode("ascii"), np.uint8)
    return f"{len(deflated)}\n{codes[letters_W5].tobytes().decode('ascii')}"
