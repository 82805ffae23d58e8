"""Rows that the families' tables share: each part of a block, whatever they call it."""

from jaxformer.interop.huggingface.table import Row


def linear(ours: str, theirs: str, pattern: str = "f d -> d f") -> list[Row]:
    """A map with its bias; PyTorch keeps the outputs first."""
    return [Row(f"{ours}/kernel", f"{theirs}.weight", pattern), Row(f"{ours}/bias", f"{theirs}.bias")]


def norm(ours: str, theirs: str) -> list[Row]:
    """A norm's scale and bias."""
    return [Row(f"{ours}/scale", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")]


def attention(ours: str, query: str, key: str, value: str, output: str) -> list[Row]:
    """The four maps by their names, in which heads and their dimensions are one axis."""
    rows = []
    for part, theirs in (("query", query), ("key", key), ("value", value)):
        rows += [
            Row(f"{ours}/{part}/kernel", f"{theirs}.weight", "(h k) d -> d h k"),
            Row(f"{ours}/{part}/bias", f"{theirs}.bias", "(h k) -> h k"),
        ]
    return rows + linear(f"{ours}/output", output, "d (h k) -> h k d")
