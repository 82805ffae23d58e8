"""Families of mixture-of-experts decoders, Mixtral (Jiang et al. 2024) and Qwen3-MoE (Yang et al. 2025): conversion
from and to Hugging Face transformers.

Their layers are those of LLaMA, except for the MLPs.

There are two checkpoint formats. The first has one tensor per linear layer and expert, and all versions of the
transformers library can read it. The second stacks the tensors of all experts, and version 5 may save it. Import reads
both formats, and export writes the first.
"""

from collections.abc import Collection
from typing import Any

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, Family
from jaxformer.interop.huggingface.families.gpt2 import BRIDGE
from jaxformer.interop.huggingface.families.llama import (
    LAYER,
    OURS,
    build_decoder,
    build_qwen,
    describe_decoder,
    llama_table,
    without_window,
)
from jaxformer.interop.huggingface.families.rows import experts, fused_experts
from jaxformer.layers.experts import ExpertMlp
from jaxformer.models.gpt import Gpt

_MLP, _BLOCK, _THEIRS = f"{OURS}/mlp", f"{LAYER}.block_sparse_moe", f"{LAYER}.mlp"
_FUSED = llama_table(fused_experts(_MLP, f"{_THEIRS}.experts", f"{_THEIRS}.gate"))
MIXTRAL_TABLE = llama_table(experts(_MLP, f"{_BLOCK}.experts", f"{_BLOCK}.gate", ("w1", "w3", "w2")), (_FUSED,))
QWEN_TABLE = llama_table(
    experts(_MLP, f"{_THEIRS}.experts", f"{_THEIRS}.gate", ("gate_proj", "up_proj", "down_proj")), (_FUSED,)
)


def build_mixtral(reader: ConfigReader, names: Collection[str]) -> Gpt:
    """Builds the model for a Mixtral config: a Mistral decoder with experts."""
    without_window(reader)
    reader.only_training("router_jitter_noise")
    mlp = _experts(reader, "num_local_experts", "intermediate_size", (8, 2))
    return build_decoder(reader, mlp, groups=8, max_length=131_072)


def build_qwen3_moe(reader: ConfigReader, names: Collection[str]) -> Gpt:
    """Builds the model for a Qwen3-MoE config: a Qwen3 decoder with experts in every block."""
    reader.must("decoder_sparse_step", 1)
    reader.must("mlp_only_layers", [])
    reader.get("intermediate_size")  # Width of blocks without experts, which are not supported.
    name = "num_experts" if "num_experts" in reader else "num_local_experts"
    normalize = reader.flag("norm_topk_prob", False)
    mlp = _experts(reader, name, "moe_intermediate_size", (128, 8), normalize)
    return build_qwen(reader, mlp, groups=4, head_dim=None)


def _experts(
    reader: ConfigReader, number: str, width: str, defaults: tuple[int, int], normalize: bool = True
) -> ExpertMlp:
    """Builds the mixture-of-experts MLP for a config.

    Args:
      reader: config of the model.
      number: name of the field with the number of experts.
      width: name of the field with the inner width of an expert.
      defaults: default number of experts, and default number of experts per token.
      normalize: whether the weights of the chosen experts sum to 1.
    """
    reader.get("output_router_logits")  # Whether transformers adds the load-balancing loss to its own loss.
    try:
        return ExpertMlp(
            experts=reader.integer(number, defaults[0]),
            top_k=reader.integer("num_experts_per_tok", defaults[1]),
            width=reader.integer(width),
            activation=reader.choice("hidden_act", ACTIVATIONS, "silu"),
            normalize=normalize,
            balance_weight=reader.number("router_aux_loss_coef", 0.001),
            z_weight=0.0,
        )
    except InputError as error:
        where = "" if str(error).startswith(reader.where) else f"{reader.where}: "
        raise InputError(f"{where}{error}") from error


def _describe_experts(model: Gpt) -> dict[str, Any]:
    mlp = model.transformer.mlp
    fields = {"num_experts_per_tok": mlp.top_k, "router_aux_loss_coef": mlp.balance_weight}
    return describe_decoder(model) | fields | {"output_router_logits": False}


def describe_mixtral(model: Gpt) -> dict[str, Any]:
    """Converts a model to a Mixtral config."""
    mlp = model.transformer.mlp
    return _describe_experts(model) | {
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": mlp.experts,
        "intermediate_size": mlp.inner(model.transformer.width),
        "sliding_window": None,
    }


def describe_qwen3_moe(model: Gpt) -> dict[str, Any]:
    """Converts a model to a Qwen3-MoE config."""
    mlp, width = model.transformer.mlp, model.transformer.width
    return _describe_experts(model) | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": model.transformer.attention.bias,
        "use_sliding_window": False,
        "num_experts": mlp.experts,
        "moe_intermediate_size": mlp.inner(width),
        "intermediate_size": mlp.inner(width),
        "norm_topk_prob": mlp.normalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


MIXTRAL = Family(
    model_type="mixtral",
    architectures=("MixtralForCausalLM",),
    module=Gpt,
    build=build_mixtral,
    describe=describe_mixtral,
    table=MIXTRAL_TABLE,
    bridge=BRIDGE,
)
QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    module=Gpt,
    build=build_qwen3_moe,
    describe=describe_qwen3_moe,
    table=QWEN_TABLE,
    bridge=BRIDGE,
)
