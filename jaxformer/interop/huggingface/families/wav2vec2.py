"""wav2vec 2.0 (Baevski et al. 2020) and HuBERT (Hsu et al. 2021): conversion from and to Hugging Face transformers."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.data.fields.waveform import WaveformField
from jaxformer.data.tasks.waveforms import SpelledSpeech
from jaxformer.data.transforms.framing import Framing
from jaxformer.data.transforms.span_masking import SpanMasking
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.bridge import Bridge, Source
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, NAMES, Family, stack
from jaxformer.interop.huggingface.families.rows import attention, linear, norm
from jaxformer.interop.huggingface.folders import CONFIG
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.interop.huggingface.waveforms import read_waveform_field, write_waveform_field
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.losses.ctc import ctc_losses
from jaxformer.models.base import Model
from jaxformer.models.speech_encoder import SpeechEncoder, speech_stack
from jaxformer.models.wav2vec2 import Wav2Vec2Ctc
from jaxformer.objectives.ctc import Ctc
from jaxformer.runs.run import Run

CONVOLUTIONS = 16
"""Maximum number of convolutions."""
STORED = ("parametrizations.weight.original0", "parametrizations.weight.original1")
"""Names of the factors of a kernel with weight norm: the scale and the direction. Older checkpoints have `OLD`."""
OLD = ("weight_g", "weight_v")


def _rows(name: str, factors: tuple[str, str]) -> tuple[ParamMapping, ...]:
    """Returns the mappings from parameters to tensors of a Hugging Face checkpoint. `name` is the prefix of the tensors
    of the encoder, such as `wav2vec2`, and `factors` are the names of the factors of a kernel with weight norm.
    """
    blocks, theirs = "transformer/blocks", f"{name}.encoder.layers.{{l}}"
    query, key, value = (f"{theirs}.attention.{part}_proj" for part in "qkv")
    convolution = f"{name}.encoder.pos_conv_embed.conv"
    rows = [
        *attention(f"{blocks}/attention", query, key, value, f"{theirs}.attention.out_proj"),
        *norm(f"{blocks}/attention_norm", f"{theirs}.layer_norm"),
        *linear(f"{blocks}/mlp/up", f"{theirs}.feed_forward.intermediate_dense"),
        *linear(f"{blocks}/mlp/down", f"{theirs}.feed_forward.output_dense"),
        *norm(f"{blocks}/mlp_norm", f"{theirs}.final_layer_norm"),
        # A model has one of the two: the norm is before the blocks, or after them.
        *norm("position_norm", f"{name}.encoder.layer_norm"),
        *norm("transformer/norm", f"{name}.encoder.layer_norm"),
        ParamMapping("positions/scale", f"{convolution}.{factors[0]}", "1 1 w -> w"),
        ParamMapping("positions/kernel", f"{convolution}.{factors[1]}", "d i w -> w i d"),
        ParamMapping("positions/bias", f"{convolution}.bias"),
        *norm("feature_norm", f"{name}.feature_projection.layer_norm"),
        *linear("projection", f"{name}.feature_projection.projection"),
        ParamMapping("mask_embedding", f"{name}.masked_spec_embed"),
        *linear("lm_head", "lm_head"),
        ParamMapping("quantizer/codebook", "quantizer.codevectors", "1 (g v) k -> g v k"),
        *linear("quantizer/logits", "quantizer.weight_proj"),
        *linear("hidden_projection", "project_hid"),
        *linear("code_projection", "project_q"),
    ]
    for number in range(CONVOLUTIONS):
        layer = f"{name}.feature_extractor.conv_layers.{number}"
        rows += linear(f"features/layer_{number}", f"{layer}.conv", "d i w -> w i d")
        rows += norm(f"features/norm_{number}", f"{layer}.layer_norm")
    return tuple(rows)


def table(name: str) -> Table:
    """Returns the table of a family. `name` is the prefix of the tensors of the encoder, such as `wav2vec2`."""
    prefix = f"{name}."
    return Table(_rows(name, STORED), prefix=prefix, others=(Table(_rows(name, OLD), prefix=prefix),))


NOT_HERE = ("activation_dropout", "layerdrop")
"""Names of config fields that only affect training and are not supported. If one is set, the import reports that it is
ignored.
"""
OTHERS = (
    *(f"mask_{kind}_{part}" for kind in ("time", "feature") for part in ("prob", "length", "min_masks")),
    *("apply_spec_augment", "ctc_loss_reduction", "ctc_zero_infinity", "classifier_proj_size"),
    *("tdnn_dim", "tdnn_kernel", "tdnn_dilation", "xvector_output_dim", "num_feat_extract_layers"),
    *("adapter_kernel_size", "adapter_stride", "num_adapter_layers", "output_hidden_size", "mask_channel_prob"),
    *("mask_channel_length", "mask_channel_min_space", "mask_channel_other", "mask_channel_selection"),
    *("mask_time_min_space", "mask_time_other", "mask_time_selection", "gradient_checkpointing"),
    *("num_codevectors_per_group", "num_codevector_groups", "contrastive_logits_temperature", "num_negatives"),
    *("codevector_dim", "proj_codevector_dim", "diversity_loss_weight", "feat_quantizer_dropout"),
    *("feat_extract_dropout", "hidden_dropout_prob", "tokenizer_class", "vocab_size", "final_dropout"),
)
"""Names of config fields that do not affect a recognizer: settings of SpecAugment, of classifiers and of other heads.
"""


def encoder_fields(reader: ConfigReader) -> dict[str, Any]:
    """Reads the fields of a `SpeechEncoder` from a config of wav2vec 2.0 or HuBERT."""
    for name in ("add_adapter", "use_weighted_layer_sum", "conv_pos_batch_norm"):
        reader.must(name, False)
    reader.must("adapter_attn_dim", None)
    for name in NOT_HERE:
        reader.only_training(name)
    for name in OTHERS:
        reader.get(name)
    sizes = {name: tuple(reader.get(f"conv_{name}", default)) for name, default in CONVOLUTION.items()}
    masked = any(reader.number(f"mask_{kind}_prob", 0.05 * (kind == "time")) > 0 for kind in ("time", "feature"))
    with reader.located():
        return {
            "transformer": _stack(reader),
            "widths": sizes["dim"],
            "framing": Framing(sizes["kernel"], sizes["stride"]),
            "convolution_norm": reader.choice("feat_extract_norm", {"group": "group", "layer": "layer"}, "group"),
            "convolution_bias": reader.flag("conv_bias", False),
            "normalize_features": reader.flag("feat_proj_layer_norm", True),
            "position_taps": reader.integer("num_conv_pos_embeddings", 128),
            "position_groups": reader.integer("num_conv_pos_embedding_groups", 16),
            "activation": reader.choice("feat_extract_activation", ACTIVATIONS, "gelu"),
            "feature_dropout": reader.rate("feat_proj_dropout", 0.0),
            "has_mask_embedding": masked,
        }


CONVOLUTION = {"dim": (512,) * 7, "kernel": Framing().kernels, "stride": Framing().strides}
"""Maps config fields of the convolutions, without their prefix `conv_`, to their defaults."""


def _stack(reader: ConfigReader) -> Transformer:
    stable = reader.flag("do_stable_layer_norm", False)
    depth = reader.integer("num_hidden_layers", 12)
    return stack(
        reader,
        width=reader.integer("hidden_size", 768),
        depth=depth,
        heads=reader.integer("num_attention_heads", 12),
        attention=speech_stack().attention,
        mlp=Mlp(reader.integer("intermediate_size", 3072), reader.choice("hidden_act", ACTIVATIONS, "gelu")),
        norm=LayerNorm(reader.number("layer_norm_eps", 1e-5)),
        norm_position="before" if stable else "after",
        dropout=reader.rate("hidden_dropout", 0.1),
        attention_dropout=reader.rate("attention_dropout", 0.1),
    )


def build_ctc(reader: ConfigReader, names: Collection[str]) -> Wav2Vec2Ctc:
    """Builds the recognizer for a config of wav2vec 2.0."""
    reader.must("feat_proj_layer_norm", True)  # A field of HuBERT.
    return build_hubert(reader, names)


def build_hubert(reader: ConfigReader, names: Collection[str]) -> Wav2Vec2Ctc:
    """Builds the recognizer for a config of HuBERT."""
    del names
    found, vocab = encoder_fields(reader), reader.integer("vocab_size", 32)
    blank = reader.get("pad_token_id", 0)
    if type(blank) is not int or not 0 <= blank < vocab:
        raise reader.error("pad_token_id", blank, f"an id below vocab_size={vocab}, because it is the blank of CTC")
    return Wav2Vec2Ctc(**found, vocab=vocab, blank=blank, head_dropout=reader.rate("final_dropout", 0.1))


def describe_encoder(model: SpeechEncoder) -> dict[str, Any]:
    """Converts the encoder of a model to fields of a config of wav2vec 2.0 or HuBERT."""
    part = model.transformer
    return {
        "hidden_size": part.width,
        "num_hidden_layers": part.depth,
        "num_attention_heads": part.heads,
        "intermediate_size": part.mlp.inner(part.width),
        "hidden_act": NAMES[part.mlp.activation],
        "hidden_dropout": part.dropout,
        "attention_dropout": part.attention_dropout,
        "activation_dropout": 0.0,
        "layerdrop": 0.0,
        "layer_norm_eps": part.norm.epsilon,
        "do_stable_layer_norm": part.norm_position == "before",
        "conv_dim": list(model.widths),
        "conv_kernel": list(model.framing.kernels),
        "conv_stride": list(model.framing.strides),
        "conv_bias": model.convolution_bias,
        "feat_extract_norm": model.convolution_norm,
        "feat_extract_activation": NAMES[model.activation],
        "feat_proj_dropout": model.feature_dropout,
        "num_feat_extract_layers": len(model.widths),
        "num_conv_pos_embeddings": model.position_taps,
        "num_conv_pos_embedding_groups": model.position_groups,
        "mask_time_prob": 0.05 if model.has_mask_embedding else 0.0,
        "mask_feature_prob": 0.0,
    }


def describe_ctc(model: Wav2Vec2Ctc) -> dict[str, Any]:
    """Converts a recognizer to a config of wav2vec 2.0."""
    if not model.normalize_features:
        raise InputError("normalize_features=False: only HuBERT has it")
    return {"architectures": ["Wav2Vec2ForCTC"], **_ctc_fields(model)}


def describe_hubert(model: Wav2Vec2Ctc) -> dict[str, Any]:
    """Converts a recognizer to a config of HuBERT."""
    norms = {"feat_proj_layer_norm": model.normalize_features}
    return {"architectures": ["HubertForCTC"], **norms, **_ctc_fields(model)}


def _ctc_fields(model: Wav2Vec2Ctc) -> dict[str, Any]:
    own = {"vocab_size": model.vocab, "pad_token_id": model.blank, "final_dropout": model.head_dropout}
    return {**describe_encoder(model), **own, "ctc_loss_reduction": "sum", "ctc_zero_infinity": False}


class SpeechBridge(Bridge):
    """Converts the inputs of models that read waveforms, and reads how waveforms are prepared."""

    arguments: ClassVar[Mapping[str, str]] = {"samples": "input_values", "sample_mask": "attention_mask"}

    def to_exportable_form(self, run: Run) -> Run:
        """Returns the run unchanged."""
        return run

    def waveforms(self, model: SpeechEncoder, rng: np.random.Generator) -> list[tuple[str, dict[str, np.ndarray]]]:
        """Returns random waveforms: batches of equal and of different lengths, a long sound, and loud sounds. Even the
        shortest one has several frames.
        """
        framing, found = model.framing, []
        for name, rows, frames, scale in (
            ("short", 3, 24, 1.0),
            ("long", 1, 96, 1.0),
            ("padded", 3, 24, 1.0),
            ("out of distribution", 3, 24, 10.0),
        ):
            size = framing.samples(frames) + framing.hop // 2
            lengths = np.full(rows, size)
            if name == "padded":
                lengths = np.array([size, framing.samples(frames - frames // 3), framing.samples(frames // 2)])
            mask = (np.arange(size) < lengths[:, None]).astype(np.uint8)
            samples = (rng.normal(0, scale, (rows, size)) * mask).astype(np.float32)
            found.append((name, {"samples": samples, "sample_mask": mask}))
        return found

    def write_files(self, folder: Path, model: Model) -> None:
        """Writes the preprocessor_config.json of the feature extractor, which normalizes waveforms."""
        write_waveform_field(folder, WaveformField(), _takes_mask(model))

    def write_preparation(self, folder: Path, run: Run) -> None:
        """Writes the preprocessor_config.json of the feature extractor, which prepares waveforms as the run does."""
        task: Any = run.experiment.data.task  # A `WaveformTask`.
        write_waveform_field(folder, task.audio, _takes_mask(run.model))


def read_masking(said: Mapping[str, Any]) -> SpanMasking | None:
    """Reads the masking of spans of frames from a config. Returns None if no frames are masked."""
    rate = said.get("mask_time_prob", 0.05)
    if not rate or not said.get("apply_spec_augment", True):
        return None
    return SpanMasking(float(rate), int(said.get("mask_time_length", 10)), int(said.get("mask_time_min_masks", 2)))


def _takes_mask(model: Any) -> bool:
    return model.convolution_norm == "layer"


class CtcBridge(SpeechBridge):
    """Chooses the training objective and the data task of an imported recognizer, and computes the labels and the loss
    of the corresponding class of the transformers library.
    """

    processor = "AutoProcessor"

    def objective(self, source: Source, model: Wav2Vec2Ctc) -> Ctc:
        """Returns the objective of CTC. Raises InputError if the tokenizer has another padding token than the blank."""
        objective = Ctc()
        if (tokenizer := source.tokenizer) is not None and tokenizer.pad_id != model.blank:
            raise InputError(
                f"{source.home}: the tokenizer's padding token has the id {tokenizer.pad_id}; expected that of the "
                f"blank, pad_token_id={model.blank} in {CONFIG}"
            )
        return objective

    def task(self, source: Source, model: Wav2Vec2Ctc, objective: Ctc) -> SpelledSpeech:
        """Returns a task of sounds with transcripts, with the masking of the config."""
        said = {} if source.folder is None else source.folder.config
        masking = read_masking(said) if model.has_mask_embedding else None
        home = source.home if source.folder is None else source.folder.path
        return SpelledSpeech(audio=read_waveform_field(home), framing=model.framing, masking=masking)

    def special_tokens(self, model: Model, tokens: Mapping[str, int | None]) -> dict[str, int | None]:
        """Returns the ids of all special tokens of the tokenizer."""
        return dict(tokens)

    def random_inputs(self, model: Wav2Vec2Ctc, rng: np.random.Generator) -> list[tuple[str, dict[str, np.ndarray]]]:
        """Returns random waveforms with random transcripts, `targets` and `weights` [batch, characters]."""
        found, every = self.waveforms(model, rng), np.delete(np.arange(model.output_vocab or 1), model.blank)
        for _, arrays in found:
            rows = len(arrays["samples"])
            targets = rng.choice(every, (rows, 5)).astype(np.int32)
            weights = (np.arange(5) < rng.integers(1, 6, (rows, 1))).astype(np.float32)
            arrays |= {"targets": targets, "weights": weights}
        return found

    def prepare_network(self, network: Any) -> None:
        """Makes the network add up the losses of all transcripts."""
        network.config.ctc_loss_reduction, network.config.ctc_zero_infinity = "sum", False

    def labels(self, model: Wav2Vec2Ctc, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the transcripts in `rows` as the argument `labels` of the class of the transformers library. Padding
        has the label -100.
        """
        return {"labels": np.where(rows["weights"] > 0, rows["targets"], -100)}

    def loss_outputs(self, model: Wav2Vec2Ctc, output: Any) -> dict[str, jax.Array]:
        """Returns the logits with the blank in front, its id in the vocabulary, and the number of frames."""
        order = np.argsort(np.arange(model.output_vocab or 1) != model.blank, kind="stable")
        return {"blank_first": output.logits[..., order], "blank": jnp.asarray(model.blank), "frames": output.frames}

    def loss(self, outputs: Mapping[str, jax.Array], rows: Mapping[str, jax.Array]) -> jax.Array:
        """Computes the sum of the losses of all transcripts, in the same way as the transformers library."""
        targets = rows["targets"] + (rows["targets"] < outputs["blank"])
        return ctc_losses(outputs["blank_first"], outputs["frames"], targets, rows["weights"]).sum()


BRIDGE = CtcBridge()
AUTO = ("AutoModelForCTC", "automatic-speech-recognition")
WAV2VEC2 = Family(
    model_type="wav2vec2",
    architectures=("Wav2Vec2ForCTC",),
    module=Wav2Vec2Ctc,
    build=build_ctc,
    describe=describe_ctc,
    table=table("wav2vec2"),
    bridge=BRIDGE,
    auto_classes={"ForCTC": AUTO},
    tokenizer_class="Wav2Vec2CTCTokenizer",
)
HUBERT = dataclasses.replace(
    WAV2VEC2,
    model_type="hubert",
    architectures=("HubertForCTC",),
    build=build_hubert,
    describe=describe_hubert,
    table=table("hubert"),
)
