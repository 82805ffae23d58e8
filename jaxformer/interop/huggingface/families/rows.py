"""Table rows of block parts that several families share."""

from jaxformer.interop.huggingface.table import ParamMapping


def linear(ours: str, theirs: str, pattern: str = "f d -> d f") -> list[ParamMapping]:
    """Returns the table rows for the kernel and bias of a linear layer. PyTorch stores the kernel as [out, in]."""
    return [ParamMapping(f"{ours}/kernel", f"{theirs}.weight", pattern), ParamMapping(f"{ours}/bias", f"{theirs}.bias")]


def norm(ours: str, theirs: str) -> list[ParamMapping]:
    """Returns the table rows for the scale and bias of a normalisation layer."""
    return [ParamMapping(f"{ours}/scale", f"{theirs}.weight"), ParamMapping(f"{ours}/bias", f"{theirs}.bias")]


def attention(ours: str, query: str, key: str, value: str, output: str) -> list[ParamMapping]:
    """Returns the table rows of attention with these tensor names. PyTorch merges heads and head size into one axis."""
    rows = []
    for part, theirs in (("query", query), ("key", key), ("value", value)):
        rows += [
            ParamMapping(f"{ours}/{part}/kernel", f"{theirs}.weight", "(h k) d -> d h k"),
            ParamMapping(f"{ours}/{part}/bias", f"{theirs}.bias", "(h k) -> h k"),
        ]
    return rows + linear(f"{ours}/output", output, "d (h k) -> h k d")


def llama_attention(ours: str, theirs: str) -> list[ParamMapping]:
    """Returns the table rows of LLaMA's self-attention, including the query and key norms of later families."""
    maps = (f"{theirs}.{part}_proj" for part in ("q", "k", "v", "o"))
    return [
        *attention(ours, *maps),
        ParamMapping(f"{ours}/query_norm/scale", f"{theirs}.q_norm.weight"),
        ParamMapping(f"{ours}/key_norm/scale", f"{theirs}.k_norm.weight"),
    ]


def gated_mlp(ours: str, theirs: str) -> list[ParamMapping]:
    """Returns the table rows of LLaMA's gated MLP."""
    return [row for part in ("gate", "up", "down") for row in linear(f"{ours}/{part}", f"{theirs}.{part}_proj")]
