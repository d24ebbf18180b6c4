"""Words for stored answers: what a table says of a row."""

from __future__ import annotations

from collections.abc import Sequence

from ..cache.rows import Label, TunedRow
from ..search_spaces.config import Config

_BLOCKS = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "BLOCK_H", "BLOCK_T", "BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K")


def tile(config: Config) -> str:
    """The part of a config that a person wants to see first: `expert 16x64x256 w4 s2`, with w warps and s stages."""
    words = [str(config["FORM"])] if "FORM" in config else []
    words.append("x".join(str(config[name]) for name in _BLOCKS if name in config))
    words.append(f"w{config['num_warps']}")
    for name, word in (("num_stages", "s"), ("SPLIT_K", "split"), ("SPLITS", "splits")):
        if config.get(name, 1) != 1:
            words.append(f"{word}{config[name]}")
    return " ".join(words)


def gain(row: TunedRow) -> float | None:
    """Default's time or score over the answer's, in the row's own evidence; None where the default has none."""
    if row.label is Label.MEASURED:
        return row.us_default / row.us_median if row.us_default and row.us_median else None
    return row.score_default / row.score if row.score_default and row.score else None


def label_word(rows: Sequence[TunedRow]) -> str:
    """The weakest label among rows: a table never looks better than its worst evidence."""
    return min(row.label for row in rows).name.lower()


def batch_ranges(batches: Sequence[int]) -> str:
    """`1..256 (10)`, or the numbers themselves when there are at most three."""
    ordered = sorted(batches)
    if len(ordered) <= 3:
        return ",".join(map(str, ordered))
    return f"{ordered[0]}..{ordered[-1]} ({len(ordered)})"
