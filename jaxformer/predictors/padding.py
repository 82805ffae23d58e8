"""Texts of any length as rows of few lengths, so that predicting compiles seldom."""

from collections.abc import Iterator, Sequence

import numpy as np

ROWS, BUCKET = 32, 32


def padded(
    rows: Sequence[np.ndarray], longest: int, more: Sequence[np.ndarray] | None = None
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Batches of rows of like lengths, padded with zeros, which segments of 0 hide from the model.

    Args:
      rows: the tokens of each, int [n].
      longest: the longest row that there may be.
      more: token types of each row, int [n], if there are any.

    Yields:
      The places of up to 32 rows in `rows`, and their arrays, int32 [r, t]: `tokens`, `segments`, and `token_types` of
      `more`. r is a power of 2, and rows after those of the places are padding; t is a multiple of 32, or `longest`.
    """
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    for start in range(0, len(order), ROWS):
        places = np.array(order[start : start + ROWS])
        length = min(longest, -(-max(len(rows[place]) for place in places) // BUCKET) * BUCKET)
        count = min(ROWS, 1 << (len(places) - 1).bit_length())
        tokens = np.zeros((count, length), np.int32)
        batch = {"tokens": tokens, "segments": np.zeros_like(tokens)}
        if more is not None:
            batch["token_types"] = np.zeros_like(tokens)
        for number, place in enumerate(places):
            size = len(rows[place])
            batch["tokens"][number, :size], batch["segments"][number, :size] = rows[place], 1
            if more is not None:
                batch["token_types"][number, :size] = more[place]
        yield places, batch


def stacked(rows: Sequence[np.ndarray], more: Sequence[np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """All rows as one batch, int32 [n, t] with t the length of the longest row; arguments and arrays as of `padded`."""
    shape = (len(rows), max(map(len, rows), default=0))
    batch = {"tokens": np.zeros(shape, np.int32), "segments": np.zeros(shape, np.int32)}
    if more is not None:
        batch["token_types"] = np.zeros(shape, np.int32)
    for number, row in enumerate(rows):
        batch["tokens"][number, : len(row)], batch["segments"][number, : len(row)] = row, 1
        if more is not None:
            batch["token_types"][number, : len(row)] = more[number]
    return batch
