"""Rows that the families' tables share: each part of a block, whatever they call it."""

from jaxformer.interop.huggingface.table import ParamMapping


def linear(ours: str, theirs: str, pattern: str = "f d -> d f") -> list[ParamMapping]:
    """A map with its bias; PyTorch keeps the outputs first."""
    return [ParamMapping(f"{ours}/kernel", f"{theirs}.weight", pattern), ParamMapping(f"{ours}/bias", f"{theirs}.bias")]


def norm(ours: str, theirs: str) -> list[ParamMapping]:
    """A norm's scale and bias."""
    return [ParamMapping(f"{ours}/scale", f"{theirs}.weight"), ParamMapping(f"{ours}/bias", f"{theirs}.bias")]


def attention(ours: str, query: str, key: str, value: str, output: str) -> list[ParamMapping]:
    """The four maps by their names, in which heads and their dimensions are one axis."""
    rows = []
    for part, theirs in (("query", query), ("key", key), ("value", value)):
        rows += [
            ParamMapping(f"{ours}/{part}/kernel", f"{theirs}.weight", "(h k) d -> d h k"),
            ParamMapping(f"{ours}/{part}/bias", f"{theirs}.bias", "(h k) -> h k"),
        ]
    return rows + linear(f"{ours}/output", output, "d (h k) -> h k d")


def llama_attention(ours: str, theirs: str) -> list[ParamMapping]:
    """LLaMA's self-attention, with the norms of each head's queries and keys that later families have."""
    maps = (f"{theirs}.{part}_proj" for part in ("q", "k", "v", "o"))
    return [
        *attention(ours, *maps),
        ParamMapping(f"{ours}/query_norm/scale", f"{theirs}.q_norm.weight"),
        ParamMapping(f"{ours}/key_norm/scale", f"{theirs}.k_norm.weight"),
    ]


def gated_mlp(ours: str, theirs: str) -> list[ParamMapping]:
    """The three maps of LLaMA's gated MLP."""
    return [row for part in ("gate", "up", "down") for row in linear(f"{ours}/{part}", f"{theirs}.{part}_proj")]
