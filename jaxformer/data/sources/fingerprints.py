"""Fingerprints of data sources, by which a resumed run detects that its data has changed.

The fingerprint of text files, JSON Lines files or tables covers every byte, because these files are read completely
when they are opened. The fingerprint of other sources covers the number of documents and the content of up to `SAMPLE`
documents, drawn with a fixed seed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer import digests
from jaxformer.data.sources.file_bytes import chunks
from jaxformer.data.sources.sources import Renamed, components, parts, record, skippable

SAMPLE = 500
"""Maximum number of documents that the fingerprint covers if the files of a source are not read completely, as for
images.
"""


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Summary of the content of a data source, by which changes of the data are detected."""

    documents: int
    """Number of documents in the source."""
    digests: dict[str, str]
    """Maps the path of each file to a digest (hash) of its content. If the files are not read completely, contains one
    digest, of sampled documents, under the key `documents`.
    """

    def change(self, now: "Fingerprint") -> str:
        """Describes how the source has changed since this fingerprint, for a message, such as "was edited: a.txt has
        changed". Returns an empty string if the fingerprints are equal. `now` is the current fingerprint of the source.
        """
        if self == now:
            return ""
        size = f"{self.documents:,} to {now.documents:,} documents"
        grown = f"has {'grown' if now.documents > self.documents else 'shrunk'} from {size}"
        what = "was edited" if self.documents == now.documents else grown
        names = sorted(self.digests.keys() | now.digests.keys())
        changed = [name for name in names if self.digests.get(name) != now.digests.get(name)]
        if not changed or changed == [_SAMPLED]:
            return what
        name = changed[0]
        how = "is gone" if name not in now.digests else "has changed" if name in self.digests else "is new"
        more = f", and {len(changed) - 1} more files" if len(changed) > 1 else ""
        return f"{what}: {name} {how}{more}"


def fingerprints(documents: Sequence, name: str) -> dict[str, Fingerprint]:
    """Returns the fingerprints of a data source, keyed by name. A mixture has one for each of its sources.

    Args:
      documents: the opened data source, a sequence of documents.
      name: name of the data source. It is the key of the fingerprint or, for a mixture, the prefix of the keys: `NAME:
        SOURCE`.
    """
    names = [part for part, _ in components(documents, name)]
    labels = names if len(names) == 1 else [f"{name}: {part}" for part in names]
    return {label: _fingerprint(part) for label, part in zip(labels, parts(documents), strict=True)}


def _fingerprint(documents: Sequence) -> Fingerprint:
    inner = documents
    while isinstance(inner, Renamed):  # Its columns are settings of the experiment.
        inner = inner.examples
    contents = getattr(inner, "contents", None)
    if contents is not None:
        return Fingerprint(len(documents), {path: digests.of_chunks(chunks(content)) for path, content in contents()})
    count = len(inner)
    drawn = range(count) if count <= SAMPLE else np.unique(np.random.default_rng(0).integers(count, size=SAMPLE))
    read, identified = getattr(inner, "identity", inner.__getitem__), hasattr(inner, "identity")
    found = []
    for index in map(int, drawn):
        content = b"unreadable"
        with skippable(inner, index):
            content = _bytes(read(index) if identified else record(inner, index))
        found.append(digests.of(content).encode())
    return Fingerprint(count, {_SAMPLED: digests.of(b"".join(found))})


_SAMPLED = "documents"


def _bytes(value: Any) -> bytes:
    """Serializes a value in a document, for a digest. Different values give different bytes, except that an object of
    an unknown type is represented only by the name of its type.
    """
    if isinstance(value, Mapping):
        return _joined(b"{", [_bytes(item) for pair in sorted(value.items()) for item in pair])
    if isinstance(value, np.ndarray) and value.dtype != object:
        return _joined(b"a", [f"{value.dtype} {value.shape}".encode(), np.ascontiguousarray(value).tobytes()])
    if isinstance(value, list | tuple | np.ndarray):
        return _joined(b"[", [_bytes(item) for item in value])
    if isinstance(value, bytes):
        return b"b" + value
    if isinstance(value, str):
        return b"s" + value.encode(errors="surrogatepass")
    if value is None or isinstance(value, bool | int | float | np.generic):
        return f"n{value}".encode()
    return type(value).__name__.encode()  # Another object may be represented differently in each process.


def _joined(kind: bytes, values: Sequence[bytes]) -> bytes:
    return kind + b"".join(len(value).to_bytes(8, "big") + value for value in values)
