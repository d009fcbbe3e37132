#!/usr/bin/env python3
"""Writes src/tokenizer/decompositions.rs: the first character of canonical decompositions, from Python's Unicode tables.

    tools/decompositions.py > src/tokenizer/decompositions.rs
"""

import sys
import unicodedata

LINE = 120


def rows(pairs: list[tuple[int, int]]) -> str:
    """Pairs as lines of a Rust array."""
    out, line = [], "   "
    for pair in pairs:
        item = " (0x%x, 0x%x)," % pair
        if len(line) + len(item) > LINE:
            out.append(line)
            line = "   "
        line += item
    return "\n".join(out + [line])


def main() -> None:
    small, large = [], []
    for code in range(0x80, sys.maxunicode + 1):
        # Syllables of Hangul follow from their numbers.
        if 0xD800 <= code < 0xE000 or 0xAC00 <= code <= 0xD7A3:
            continue
        first = ord(unicodedata.normalize("NFD", chr(code))[0])
        if first != code:
            (large if max(first, code) > 0xFFFF else small).append((code, first))
    version = unicodedata.unidata_version
    print(f"""//! The first characters of canonical decompositions (Unicode {version}), written by `tools/decompositions.py`.

/// Characters that decompose and what they begin with, those below 2^16.
#[rustfmt::skip]
pub static SMALL: [(u16, u16); {len(small)}] = [
{rows(small)}
];

/// The others.
#[rustfmt::skip]
pub static LARGE: [(u32, u32); {len(large)}] = [
{rows(large)}
];""")


if __name__ == "__main__":
    main()
