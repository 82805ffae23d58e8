"""Small models of transformers with weights drawn at random, and shapes of them for hypothesis to draw."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

warnings.filterwarnings("ignore", message=".*torchvision.*")

import transformers  # noqa: E402

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

VOCAB, POSITIONS = 41, 24
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
EPSILONS = st.sampled_from([1e-12, 1e-6, 1e-3])
INNER = st.integers(5, 30)
DEPTH = st.integers(1, 3)
HEADS = st.sampled_from([1, 3, 5])


def redrawn(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The model with random parameters, and random buffers that are saved too: zeros and ones would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if (
                tensor.is_floating_point()
                and name not in fixed
                and "inv_freq" not in name
                and "embed_scale" not in name
            ):
                tensor.normal_(0, 0.2, generator=generator)
                zero_centred = model.config.model_type == "gemma3_text"  # Its norms store their scales less 1.
                if "norm" in name.lower() and name.endswith("weight") and not zero_centred:
                    tensor.add_(1)
    return model.eval()


@st.composite
def bert(draw, name="Bert"):
    """BERT with any of its heads, or RoBERTa."""
    heads, inner = draw(HEADS), draw(INNER)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCAB,
        hidden_size=heads * draw(st.integers(2, 5)),
        num_hidden_layers=draw(DEPTH),
        num_attention_heads=heads,
        intermediate_size=inner,
        hidden_act="gelu" if name == "Roberta" else draw(st.sampled_from(["gelu", "relu", "gelu_new", "silu"])),
        max_position_embeddings=POSITIONS,
        type_vocab_size=1 if name == "Roberta" else 2,
        layer_norm_eps=draw(EPSILONS),
    )
    kinds = ["Model", "ForMaskedLM"] + (["ForPreTraining"] if name == "Bert" else [])
    kind = draw(st.sampled_from([*kinds, "bare"]))
    if kind == "bare":
        return getattr(transformers, f"{name}Model")(config, add_pooling_layer=False)
    return getattr(transformers, f"{name}{kind}")(config)


@st.composite
def distilbert(draw):
    """DistilBERT, with a head or without."""
    heads = draw(HEADS)
    config = transformers.DistilBertConfig(
        vocab_size=VOCAB,
        dim=heads * draw(st.integers(2, 5)),
        n_layers=draw(DEPTH),
        n_heads=heads,
        hidden_dim=draw(INNER),
        activation=draw(st.sampled_from(["gelu", "relu"])),
        max_position_embeddings=POSITIONS,
    )
    return draw(st.sampled_from([transformers.DistilBertModel, transformers.DistilBertForMaskedLM]))(config)


@st.composite
def gpt2(draw):
    """GPT-2, its head tied or not."""
    heads = draw(HEADS)
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_positions=POSITIONS,
        n_embd=heads * draw(st.integers(2, 5)),
        n_layer=draw(DEPTH),
        n_head=heads,
        n_inner=draw(st.none() | INNER),
        activation_function=draw(st.sampled_from(["gelu_new", "relu", "gelu"])),
        layer_norm_epsilon=draw(EPSILONS),
        tie_word_embeddings=draw(st.booleans()),
        **NO_TOKENS,
    )
    return transformers.GPT2LMHeadModel(config)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 5.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 32,
}

GEMMA_KINDS = ("full_attention", "sliding_attention")


@st.composite
def llama(draw, name="Llama"):
    """LLaMA, Mistral, Qwen3, and those with experts: grouped heads of any even size, biases, ties and rotations."""
    groups = draw(HEADS)
    heads = groups * draw(st.integers(1, 3))
    rope = draw(st.sampled_from([{"rope_type": "default"}, {"rope_type": "linear", "factor": 3.0}, LLAMA3]))
    biases = {"Llama": ("attention_bias", "mlp_bias"), "Qwen3": ("attention_bias",), "Qwen3Moe": ("attention_bias",)}
    number = draw(st.integers(2, 5))
    experts = {
        "num_experts" if name == "Qwen3Moe" else "num_local_experts": number,
        "num_experts_per_tok": draw(st.integers(1, number)),
    }
    if name == "Qwen3Moe":
        experts |= {"moe_intermediate_size": 4 * draw(st.integers(1, 4)), "norm_topk_prob": draw(st.booleans())}
    # The grouped products that transformers computes experts by need rows of a multiple of 16 bytes.
    aligned = 4 if name in ("Mixtral", "Qwen3Moe") else 1
    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCAB,
        hidden_size=aligned * heads * draw(st.integers(2, 3)),
        intermediate_size=aligned * draw(INNER),
        num_hidden_layers=draw(DEPTH),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=2 * draw(st.integers(1, 4)),
        max_position_embeddings=POSITIONS,
        rms_norm_eps=draw(EPSILONS),
        rope_parameters=rope | {"rope_theta": draw(st.sampled_from([100.0, 5e5]))},
        tie_word_embeddings=draw(st.booleans()),
        **{bias: draw(st.booleans()) for bias in biases.get(name, ())},
        **({"sliding_window": None} if name == "Mistral" else {}),
        **(experts if aligned > 1 else {}),
        **NO_TOKENS,
    )
    return getattr(transformers, f"{name}ForCausalLM")(config)


@st.composite
def gemma3(draw):
    """Gemma 3: blocks of both kinds in any order, windows shorter than the inputs, and rotations of both kinds."""
    groups = draw(HEADS)
    heads, depth = groups * draw(st.integers(1, 3)), draw(st.integers(1, 4))
    scaling = draw(st.sampled_from([{"rope_type": "default"}, {"rope_type": "linear", "factor": 8.0}]))
    config = transformers.Gemma3TextConfig(
        vocab_size=VOCAB,
        hidden_size=heads * draw(st.integers(2, 3)),
        intermediate_size=draw(INNER),
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=2 * draw(st.integers(1, 4)),
        query_pre_attn_scalar=draw(st.integers(2, 9)),
        hidden_activation=draw(st.sampled_from(["gelu_pytorch_tanh", "silu"])),
        max_position_embeddings=POSITIONS,
        rms_norm_eps=draw(EPSILONS),
        sliding_window=draw(st.integers(1, 5)),
        layer_types=draw(st.lists(st.sampled_from(GEMMA_KINDS), min_size=depth, max_size=depth)),
        rope_parameters={
            "full_attention": scaling | {"rope_theta": draw(st.sampled_from([100.0, 1e6]))},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
        attention_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
        **NO_TOKENS,
    )
    return transformers.Gemma3ForCausalLM(config)


@st.composite
def t5(draw, name="T5"):
    """T5 v1.0 and v1.1, or mT5: gated or not, a head of its own or not."""
    untied = draw(st.booleans())
    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCAB,
        d_model=draw(st.integers(4, 14)),
        d_kv=draw(st.integers(2, 6)),
        d_ff=draw(INNER),
        num_layers=draw(DEPTH),
        num_decoder_layers=draw(DEPTH),
        num_heads=draw(HEADS),
        relative_attention_num_buckets=draw(st.sampled_from([8, 32])),
        feed_forward_proj=draw(st.sampled_from(["relu", "gated-gelu", "gated-silu"])),
        layer_norm_epsilon=draw(EPSILONS),
        tie_word_embeddings=not untied,
        decoder_start_token_id=0,
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    if untied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


@st.composite
def marian(draw, name="Marian"):
    """Marian or BART, with stacks of different shapes."""
    heads = draw(st.tuples(HEADS, HEADS))
    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCAB,
        d_model=2 * heads[0] * heads[1],
        encoder_layers=draw(DEPTH),
        decoder_layers=draw(DEPTH),
        encoder_attention_heads=heads[0],
        decoder_attention_heads=heads[1],
        encoder_ffn_dim=draw(INNER),
        decoder_ffn_dim=draw(INNER),
        activation_function=draw(st.sampled_from(["gelu", "swish", "relu"])),
        max_position_embeddings=POSITIONS,
        scale_embedding=draw(st.booleans()),
        pad_token_id=1,
        eos_token_id=2,
        forced_eos_token_id=2,
        bos_token_id=0,
        decoder_start_token_id=1,
    )
    return getattr(transformers, {"Marian": "MarianMTModel"}.get(name, f"{name}ForConditionalGeneration"))(config)


FAMILIES: dict[str, Any] = {
    "bert": bert(),
    "roberta": bert("Roberta"),
    "distilbert": distilbert(),
    "gpt2": gpt2(),
    "llama": llama(),
    "mistral": llama("Mistral"),
    "qwen3": llama("Qwen3"),
    "mixtral": llama("Mixtral"),
    "qwen3_moe": llama("Qwen3Moe"),
    "gemma3": gemma3(),
    "t5": t5(),
    "mt5": t5("MT5"),
    "marian": marian(),
    "bart": marian("Bart"),
}


def saved(model: torch.nn.Module, folder: Path) -> Path:
    """The folder that transformers writes of it."""
    model.save_pretrained(folder)
    return folder


def inputs(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Tokens, by transformers' names."""
    rng = np.random.default_rng(0)
    tokens = {"input_ids": rng.integers(3, VOCAB, (2, 9))}
    if model.config.is_encoder_decoder:
        tokens["decoder_input_ids"] = rng.integers(3, VOCAB, (2, 7))
    return tokens


def run(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """The model's outputs for `inputs`, by our names."""
    with torch.no_grad():
        output = model(**{name: torch.from_numpy(array) for name, array in inputs(model).items()})
    found = {"logits": output.get("logits", output.get("prediction_logits"))}
    found |= {"next_sentence_logits": output.get("seq_relationship_logits"), "pooled": output.get("pooler_output")}
    if found["logits"] is None:
        found["hidden"] = output.last_hidden_state
    return {name: tensor.numpy() for name, tensor in found.items() if tensor is not None}


def run_ours(model, params, theirs: torch.nn.Module) -> dict[str, np.ndarray]:
    """The same for our model."""
    output = model.apply({"params": params}, *inputs(theirs).values())
    found = {}
    for name in ("logits", "next_sentence_logits", "pooled", "hidden"):
        if name != "logits" or output.lm_head is not None:
            array = getattr(output, name, None)
            if array is not None:
                found[name] = np.asarray(array[:, 0] if name in ("pooled", "next_sentence_logits") else array)
    return found


AutoClass = Callable[..., torch.nn.Module]


def auto_class(model: torch.nn.Module) -> AutoClass:
    """The AutoModel by which transformers' users would load such a model."""
    for ending, auto in {
        "Model": transformers.AutoModel,
        "ForMaskedLM": transformers.AutoModelForMaskedLM,
        "ForPreTraining": transformers.AutoModelForPreTraining,
        "ForCausalLM": transformers.AutoModelForCausalLM,
        "LMHeadModel": transformers.AutoModelForCausalLM,
        "ForConditionalGeneration": transformers.AutoModelForSeq2SeqLM,
        "MTModel": transformers.AutoModelForSeq2SeqLM,
    }.items():
        if type(model).__name__.endswith(ending):
            found = auto
    return found
