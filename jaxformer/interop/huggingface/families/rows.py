"""Parameter mappings (from JAX parameters to tensors of Hugging Face checkpoints) for layers that several model
families have.
"""

from jaxformer.interop.huggingface.table import ParamMapping


def linear(ours: str, theirs: str, pattern: str = "f d -> d f") -> list[ParamMapping]:
    """Returns the mappings from the parameters of a linear layer (kernel and bias) to tensors of a Hugging Face
    checkpoint. PyTorch stores the kernel as [out, in].

    Args:
      ours: Parameter path of the layer.
      theirs: Prefix of the layer's tensor names in Hugging Face checkpoints.
      pattern: Rearrangement of the stored kernel to our kernel, in einops notation. If empty, the axes are the same.
    """
    return [ParamMapping(f"{ours}/kernel", f"{theirs}.weight", pattern), ParamMapping(f"{ours}/bias", f"{theirs}.bias")]


def norm(ours: str, theirs: str) -> list[ParamMapping]:
    """Returns the mappings from the parameters of a normalisation layer (scale and bias) to tensors of a Hugging Face
    checkpoint. `ours` is the path of the parameters, and `theirs` the prefix of the tensor names.
    """
    return [ParamMapping(f"{ours}/scale", f"{theirs}.weight"), ParamMapping(f"{ours}/bias", f"{theirs}.bias")]


def attention(ours: str, query: str, key: str, value: str, output: str) -> list[ParamMapping]:
    """Returns the mappings from the parameters of an attention layer to tensors of a Hugging Face checkpoint. PyTorch
    merges the axes of heads and of head dimensions into one axis.

    Args:
      ours: Parameter path of the layer.
      query: Prefix of the query tensors' names in Hugging Face checkpoints.
      key: Prefix of the key tensors' names.
      value: Prefix of the value tensors' names.
      output: Prefix of the output tensors' names.
    """
    rows = []
    for part, theirs in (("query", query), ("key", key), ("value", value)):
        rows += [
            ParamMapping(f"{ours}/{part}/kernel", f"{theirs}.weight", "(h k) d -> d h k"),
            ParamMapping(f"{ours}/{part}/bias", f"{theirs}.bias", "(h k) -> h k"),
        ]
    return rows + linear(f"{ours}/output", output, "d (h k) -> h k d")


def llama_attention(ours: str, theirs: str) -> list[ParamMapping]:
    """Returns the mappings from the parameters of LLaMA's self-attention to tensors of a Hugging Face checkpoint.
    Includes the query and key norms of later model families. `ours` is the path of the parameters, and `theirs` the
    prefix of the tensor names.
    """
    maps = (f"{theirs}.{part}_proj" for part in ("q", "k", "v", "o"))
    return [
        *attention(ours, *maps),
        ParamMapping(f"{ours}/query_norm/scale", f"{theirs}.q_norm.weight"),
        ParamMapping(f"{ours}/key_norm/scale", f"{theirs}.k_norm.weight"),
    ]


def gated_mlp(ours: str, theirs: str) -> list[ParamMapping]:
    """Returns the mappings from the parameters of LLaMA's gated MLP to tensors of a Hugging Face checkpoint. `ours` is
    the path of the parameters, and `theirs` the prefix of the tensor names.
    """
    return [row for part in ("gate", "up", "down") for row in linear(f"{ours}/{part}", f"{theirs}.{part}_proj")]


def experts(ours: str, theirs: str, router: str, names: tuple[str, str, str]) -> list[ParamMapping]:
    """Returns the mappings from the parameters of a router and its experts to tensors of a Hugging Face checkpoint that
    has separate tensors for each expert.

    Args:
      ours: Parameter path of the MLP.
      theirs: Prefix of the tensor names of all experts in Hugging Face checkpoints.
      router: Name of the router's tensor.
      names: Names of an expert's gate, up and down tensors.
    """
    rows = [ParamMapping(f"{ours}/router/kernel", f"{router}.weight", "f d -> d f")]
    for part, name in zip(("gate", "up", "down"), names, strict=True):
        rows.append(ParamMapping(f"{ours}/{part}/kernel", f"{theirs}.{{e}}.{name}.weight", "f d -> d f"))
    return rows


def fused_experts(ours: str, theirs: str, router: str) -> list[ParamMapping]:
    """Returns the mappings from the parameters of a router and its experts to tensors of a Hugging Face checkpoint in
    which one tensor contains all experts, as version 5 of the transformers library may save them.
    """
    gate_and_up = (f"{ours}/gate/kernel", f"{ours}/up/kernel")
    return [
        ParamMapping(f"{ours}/router/kernel", f"{router}.weight", "f d -> d f"),
        ParamMapping(gate_and_up, f"{theirs}.gate_up_proj", "e (n f) d -> n e d f"),
        ParamMapping(f"{ours}/down/kernel", f"{theirs}.down_proj", "e d f -> e f d"),
    ]
