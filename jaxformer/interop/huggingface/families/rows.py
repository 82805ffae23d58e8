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


def experts(ours: str, theirs: str, router: str, names: tuple[str, str, str]) -> list[ParamMapping]:
    """Returns the rows of a router and of experts with separate tensors; `names` are those of gate, up and down."""
    rows = [ParamMapping(f"{ours}/router/kernel", f"{router}.weight", "f d -> d f")]
    for part, name in zip(("gate", "up", "down"), names, strict=True):
        rows.append(ParamMapping(f"{ours}/{part}/kernel", f"{theirs}.{{e}}.{name}.weight", "f d -> d f"))
    return rows


def fused_experts(ours: str, theirs: str, router: str) -> list[ParamMapping]:
    """Returns the rows of a router and of experts whose tensors are fused, as transformers 5 has them in memory."""
    gate_and_up = (f"{ours}/gate/kernel", f"{ours}/up/kernel")
    return [
        ParamMapping(f"{ours}/router/kernel", f"{router}.weight", "f d -> d f"),
        ParamMapping(gate_and_up, f"{theirs}.gate_up_proj", "e (n f) d -> n e d f"),
        ParamMapping(f"{ours}/down/kernel", f"{theirs}.down_proj", "e d f -> e f d"),
    ]
