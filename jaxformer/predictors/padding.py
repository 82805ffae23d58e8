"""Pads texts to one of a few lengths, so that XLA compiles a model for few shapes although texts have many lengths."""

from collections.abc import Iterator, Sequence

import numpy as np

ROWS, BUCKET = 32, 32


def padded(
    rows: Sequence[np.ndarray], longest: int, token_types: Sequence[np.ndarray] | None = None
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Groups rows of similar lengths into batches, and pads the rows with zeros.

    Args:
      rows: Token ids of each row, int [tokens].
      longest: Maximum length of a row.
      token_types: Token types of each row, int [tokens]. If None, batches have no token types.

    Yields:
      For each batch, an array with the indices in `rows` of its rows (at most 32), and a dict of its arrays, int32
      [batch, length]: `tokens`, `segments` (1 for tokens, 0 for padding), and `token_types` if they are given. The
      batch size is a power of 2; rows after those with an index are padding. The length is a multiple of 32, or
      `longest`.
    """
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    for start in range(0, len(order), ROWS):
        places = np.array(order[start : start + ROWS])
        length = min(longest, -(-max(len(rows[place]) for place in places) // BUCKET) * BUCKET)
        count = min(ROWS, 1 << (len(places) - 1).bit_length())
        tokens = np.zeros((count, length), np.int32)
        batch = {"tokens": tokens, "segments": np.zeros_like(tokens)}
        if token_types is not None:
            batch["token_types"] = np.zeros_like(tokens)
        for number, place in enumerate(places):
            size = len(rows[place])
            batch["tokens"][number, :size], batch["segments"][number, :size] = rows[place], 1
            if token_types is not None:
                batch["token_types"][number, :size] = token_types[place]
        yield places, batch


def stacked(
    rows: Sequence[np.ndarray], token_types: Sequence[np.ndarray] | None = None, length: int | None = None
) -> dict[str, np.ndarray]:
    """Stacks all rows into one batch, padded to `length`, or to the length of the longest row if it is None. Takes
    `rows` and `token_types` as `padded` does. Returns the dict of its arrays, int32 [rows, length].
    """
    shape = (len(rows), max(map(len, rows), default=0) if length is None else length)
    batch = {"tokens": np.zeros(shape, np.int32), "segments": np.zeros(shape, np.int32)}
    if token_types is not None:
        batch["token_types"] = np.zeros(shape, np.int32)
    for number, row in enumerate(rows):
        batch["tokens"][number, : len(row)], batch["segments"][number, : len(row)] = row, 1
        if token_types is not None:
            batch["token_types"][number, : len(row)] = token_types[number]
    return batch
