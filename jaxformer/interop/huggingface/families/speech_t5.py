"""SpeechT5 family (Ao et al. 2022), text to speech: conversion from and to Hugging Face transformers."""

import dataclasses
import types
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.data.fields.spectrogram import SpectrogramField
from jaxformer.data.fields.vector import VectorField
from jaxformer.data.tasks.spoken_text import LetterField, SpokenText, previous_frames
from jaxformer.data.transforms.log_mel import SPOKEN
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.bridge import Bridge, Source
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, NAMES, Family, sizes_of_sides, stack
from jaxformer.interop.huggingface.families.rows import attention, linear, norm
from jaxformer.interop.huggingface.folders import read_json, write_json
from jaxformer.interop.huggingface.images import PREPROCESSOR
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.positions import RelativeKeys
from jaxformer.losses.speech_frames import frame_losses
from jaxformer.models.base import Model
from jaxformer.models.speech_t5 import SpeechT5, speech_t5_stack
from jaxformer.objectives.speech_frames import SpeechFrames

SECONDS = 20.0
"""Maximum length in seconds of the speech in batches of an imported model, if the model has room for it."""
PRENET, POSTNET = 6, 12
"""Maximum numbers of layers of the prenet and of the postnet of models that can be converted."""
_ENCODER, _DECODER = "speecht5.encoder.wrapped_encoder", "speecht5.decoder.wrapped_decoder"
_IN_DECODER, _OUT = "speecht5.decoder.prenet", "speech_decoder_postnet"


def _projections(ours: str, theirs: str) -> list[ParamMapping]:
    return attention(ours, *(f"{theirs}.{part}_proj" for part in ("q", "k", "v", "out")))


def _mlp(ours: str, theirs: str) -> list[ParamMapping]:
    dense = f"{theirs}.feed_forward"
    rows = linear(f"{ours}/up", f"{dense}.intermediate_dense") + linear(f"{ours}/down", f"{dense}.output_dense")
    return rows + norm(f"{ours}_norm", f"{theirs}.final_layer_norm")


def _rows() -> tuple[ParamMapping, ...]:
    text, layer = "speecht5.encoder.prenet", f"{_ENCODER}.layers.{{l}}"
    rows = [
        ParamMapping("embeddings/token", f"{text}.embed_tokens.weight"),
        ParamMapping("text_positions/scale", f"{text}.encode_positions.alpha"),
        ParamMapping("encoder/position_embedding/keys", f"{_ENCODER}.embed_positions.pe_k.weight"),
        *norm("encoder_norm", f"{_ENCODER}.layer_norm"),
        *_projections("encoder/blocks/attention", f"{layer}.attention"),
        *norm("encoder/blocks/attention_norm", f"{layer}.layer_norm"),
        *_mlp("encoder/blocks/mlp", layer),
    ]
    layer = f"{_DECODER}.layers.{{l}}"
    for ours, theirs in (("attention", "self_attn"), ("cross_attention", "encoder_attn")):
        rows += _projections(f"decoder/blocks/{ours}", f"{layer}.{theirs}")
        rows += norm(f"decoder/blocks/{ours}_norm", f"{layer}.{theirs}_layer_norm")
    rows += _mlp("decoder/blocks/mlp", layer)
    for number in range(PRENET):
        rows += linear(f"prenet/layer_{number}", f"{_IN_DECODER}.layers.{number}")
    rows += linear("prenet/output", f"{_IN_DECODER}.final_layer")
    rows += linear("prenet/speaker", f"{_IN_DECODER}.speaker_embeds_layer")
    rows += [ParamMapping("prenet/positions/scale", f"{_IN_DECODER}.encode_positions.alpha")]
    rows += linear("features", f"{_OUT}.feat_out") + linear("stop", f"{_OUT}.prob_out")
    for number in range(POSTNET):
        theirs, batch = f"{_OUT}.layers.{number}", f"postnet/norm_{number}"
        rows += [ParamMapping(f"postnet/layer_{number}/kernel", f"{theirs}.conv.weight", "d i w -> w i d")]
        rows += norm(batch, f"{theirs}.batch_norm")
        rows += [
            ParamMapping(f"{batch}/mean", f"{theirs}.batch_norm.running_mean"),
            ParamMapping(f"{batch}/variance", f"{theirs}.batch_norm.running_var"),
        ]
    return tuple(rows)


TABLE = Table(
    _rows(),
    known={
        f"{_OUT}.layers.{{l}}.batch_norm.num_batches_tracked": "a number of training steps",
        "speecht5.encoder.prenet.encode_positions.pe": "fixed positions",
        "speecht5.decoder.prenet.encode_positions.pe": "fixed positions",
    },
)
OF_SPEECH_ENCODER = (
    *("feat_extract_norm", "feat_proj_dropout", "feat_extract_activation", "conv_dim", "conv_stride", "conv_kernel"),
    *("conv_bias", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "num_feat_extract_layers"),
    *("num_hidden_layers", "num_attention_heads"),
)
"""Names of config fields that are ignored, because they describe the encoder of speech, which text to speech lacks."""
OF_MASKS = tuple(f"mask_{kind}_{part}" for kind in ("time", "feature") for part in ("prob", "length", "min_masks"))
"""Names of config fields that are ignored: settings of SpecAugment, which applies to the encoder of speech."""
GUIDED = {
    "guided_attention_loss_scale": 10.0,
    "guided_attention_loss_num_heads": 2,
    "guided_attention_loss_sigma": 0.4,
}
"""Defaults of the config fields of the guided attention loss."""


def build(reader: ConfigReader, names: Collection[str]) -> SpeechT5:
    """Builds the model for a SpeechT5 config."""
    del names
    for name in (*OF_SPEECH_ENCODER, *OF_MASKS, *GUIDED, "use_guided_attention_loss", "apply_spec_augment"):
        reader.get(name)
    for name in ("activation_dropout", "encoder_layerdrop", "decoder_layerdrop"):
        reader.only_training(name)
    reader.must("scale_embedding", False)
    reader.get("tie_word_embeddings")  # There is only one table of tokens.

    def make(side: str, **fields: Any):
        return stack(
            reader,
            width=reader.integer("hidden_size", 768),
            depth=reader.integer(f"{side}_layers", 12 if side == "encoder" else 6),
            heads=reader.integer(f"{side}_attention_heads", 12),
            attention=speech_t5_stack(2, 1, 1).attention,
            mlp=Mlp(reader.integer(f"{side}_ffn_dim", 3072), reader.choice("hidden_act", ACTIVATIONS, "gelu")),
            norm=LayerNorm(reader.number("layer_norm_eps", 1e-5)),
            norm_position="after",
            dropout=reader.rate("hidden_dropout", 0.1, "positional_dropout"),
            attention_dropout=reader.rate("attention_dropout", 0.1),
            **fields,
        )

    with reader.located():
        return SpeechT5(
            make("encoder", position_embedding=RelativeKeys(reader.integer("encoder_max_relative_position", 160))),
            make("decoder"),
            vocab=reader.integer("vocab_size", 81),
            max_length=reader.integer("max_text_positions", 450),
            max_frames=reader.integer("max_speech_positions", 4000),
            mels=reader.integer("num_mel_bins", 80),
            reduction=reader.integer("reduction_factor", 2),
            speaker_size=reader.integer("speaker_embedding_dim", 512),
            prenet_width=reader.integer("speech_decoder_prenet_units", 256),
            prenet_depth=reader.integer("speech_decoder_prenet_layers", 2),
            prenet_dropout=reader.rate("speech_decoder_prenet_dropout", 0.5),
            postnet_width=reader.integer("speech_decoder_postnet_units", 256),
            postnet_depth=reader.integer("speech_decoder_postnet_layers", 5),
            postnet_taps=reader.integer("speech_decoder_postnet_kernel", 5),
            postnet_dropout=reader.rate("speech_decoder_postnet_dropout", 0.5),
        )


def describe(model: SpeechT5) -> dict[str, Any]:
    """Converts the model to a SpeechT5 config."""
    positions: Any = model.encoder.position_embedding  # A `RelativeKeys`.
    return sizes_of_sides(model) | {
        "architectures": ["SpeechT5ForTextToSpeech"],
        "is_encoder_decoder": True,
        "vocab_size": model.vocab,
        "hidden_size": model.encoder.width,
        "hidden_act": NAMES[model.encoder.mlp.activation],
        "layer_norm_eps": model.encoder.norm.epsilon,
        "hidden_dropout": model.encoder.dropout,
        "positional_dropout": model.encoder.dropout,
        "attention_dropout": model.encoder.attention_dropout,
        "activation_dropout": 0.0,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "scale_embedding": False,
        "encoder_max_relative_position": positions.longest,
        "max_text_positions": model.max_length,
        "max_speech_positions": model.max_frames,
        "num_mel_bins": model.mels,
        "reduction_factor": model.reduction,
        "speaker_embedding_dim": model.speaker_size,
        "speech_decoder_prenet_units": model.prenet_width,
        "speech_decoder_prenet_layers": model.prenet_depth,
        "speech_decoder_prenet_dropout": model.prenet_dropout,
        "speech_decoder_postnet_units": model.postnet_width,
        "speech_decoder_postnet_layers": model.postnet_depth,
        "speech_decoder_postnet_kernel": model.postnet_taps,
        "speech_decoder_postnet_dropout": model.postnet_dropout,
    }


def extractor(model: SpeechT5) -> dict[str, Any]:
    """Returns the content of preprocessor_config.json: the settings of the feature extractor that computes the
    spectrograms which the model predicts.
    """
    milliseconds = 1000 / SPOKEN.rate
    return {
        "feature_extractor_type": "SpeechT5FeatureExtractor",
        "processor_class": "SpeechT5Processor",
        "num_mel_bins": model.mels,
        "sampling_rate": SPOKEN.rate,
        "hop_length": round(SPOKEN.hop * milliseconds),
        "win_length": round(SPOKEN.window * milliseconds),
        "win_function": "hann_window",
        "fmin": SPOKEN.lowest,
        "fmax": SPOKEN.highest,
        "mel_floor": SPOKEN.floor,
    }


def check_extractor(source: Source, model: SpeechT5) -> None:
    """Raises InputError if the feature extractor of a folder computes other spectrograms than `SPOKEN`. Accepts a
    folder without a feature extractor.
    """
    path = source.opened.path / PREPROCESSOR
    if not path.is_file():
        return
    said = read_json(path)
    for name, value in extractor(model).items():
        if name != "processor_class" and said.get(name, value) != value:
            raise InputError(f"{path}: {name}={said[name]!r} is not supported; expected {value!r}")


class SpeechT5Bridge(Bridge):
    """Chooses the training objective and the data task of an imported model of text to speech, and computes the labels
    and the loss of the corresponding class of the transformers library.
    """

    arguments: ClassVar[Mapping[str, str]] = {
        "tokens": "input_ids",
        "segments": "attention_mask",
        "frames": "decoder_input_values",
        "speaker": "speaker_embeddings",
    }
    processor = "AutoProcessor"

    def objective(self, source: Source, model: SpeechT5) -> SpeechFrames:
        """Returns the objective with the guided attention loss of the imported config."""
        check_extractor(source, model)
        config = source.opened.config
        said = {name: config.get(name, default) for name, default in GUIDED.items()}
        used = config.get("use_guided_attention_loss", True)
        return SpeechFrames(
            guided_weight=float(said["guided_attention_loss_scale"]) if used else 0.0,
            guided_heads=int(said["guided_attention_loss_num_heads"]),
            guided_sigma=float(said["guided_attention_loss_sigma"]),
        )

    def task(self, source: Source, model: SpeechT5, objective: SpeechFrames) -> SpokenText:
        """Returns a task of texts, speakers and speech."""
        log_mel = dataclasses.replace(SPOKEN, mels=model.mels)
        groups = min(int(SECONDS * log_mel.frames_per_second) // model.reduction, model.max_frames)
        speech = SpectrogramField(seconds=groups * model.reduction / log_mel.frames_per_second, log_mel=log_mel)
        vector = VectorField(length=model.speaker_size)
        return SpokenText(speech, LetterField(length=model.max_length), vector, model.reduction)

    def special_tokens(self, model: Model, tokens: Mapping[str, int | None]) -> dict[str, int | None]:
        """Returns the config.json fields with the special token ids of the tokenizer. The decoder reads no tokens."""
        return dict(tokens)

    def write_files(self, folder: Any, model: SpeechT5) -> None:
        """Writes preprocessor_config.json."""
        write_json(folder / PREPROCESSOR, extractor(model))

    def prepare_network(self, network: Any) -> None:
        """Removes the dropout of the prenet, which the PyTorch model applies in predictions too, and the guided
        attention loss.
        """
        network.speecht5.decoder.prenet._consistent_dropout = lambda inputs, rate: inputs
        network.config.use_guided_attention_loss = False

    def random_inputs(self, model: SpeechT5, rng: np.random.Generator) -> list[tuple[str, dict[str, np.ndarray]]]:
        """Returns texts with random frames, for parity checks: without padding, with padding, and out of the range of
        spectrograms.
        """
        rows, length, groups = 3, min(24, model.max_length), 11
        ids = np.arange(3, model.require_text_limits().vocab)

        def batch(lengths: list[int], frames: list[int], size: float) -> dict[str, np.ndarray]:
            segments = (np.arange(length) < np.array(lengths)[:, None]).astype(np.int32)
            spectrogram = rng.normal(-size, size, (rows, groups * model.reduction, model.mels)).astype(np.float32)
            mask = (np.arange(groups) < np.array(frames)[:, None]).astype(np.int32)
            return {
                "tokens": np.where(segments, rng.choice(ids, (rows, length)), 1).astype(np.int32),
                "segments": segments,
                "speaker": rng.normal(0, 1, (rows, model.speaker_size)).astype(np.float32),
                "frames": np.stack([previous_frames(one, model.reduction) for one in spectrogram]),
                "spectrogram": spectrogram,
                "frame_mask": np.repeat(mask, model.reduction, axis=1),
            }

        return [
            ("without padding", batch([length] * rows, [groups] * rows, 1.0)),
            ("padded", batch([length, length // 2, 1], [groups, 3, 7], 1.0)),
            ("out of distribution", batch([length] * rows, [groups] * rows, 10.0)),
        ]

    def outputs(self, model: Any, output: Any, objective: Any = None) -> dict[str, jax.Array]:
        """Returns the spectrogram after the postnet, the only output of the class of the transformers library."""
        return {"spectrogram": output.spectrogram}

    def loss_outputs(self, model: Any, output: Any) -> dict[str, jax.Array]:
        """Returns the stop logits and the spectrogram before the postnet, which the loss needs too."""
        return {"before": output.before, "stop_logits": output.stop_logits}

    def labels(self, model: SpeechT5, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the spectrograms in `rows` as label arguments of the class of the transformers library, for parity
        checks. Padding has the label -100, which the class ignores.
        """
        return {"labels": np.where(rows["frame_mask"][..., None] > 0, rows["spectrogram"], np.float32(-100))}

    def loss(self, outputs: Mapping[str, jax.Array], rows: Mapping[str, jax.Array]) -> jax.Array:
        """Computes the loss in the same way as the transformers library, without the guided attention loss."""
        output = types.SimpleNamespace(**outputs, memory_attention=None)
        return jnp.sum(jnp.stack([jnp.asarray(mean.value) for mean in frame_losses(output, rows, 1, 1.0).values()]))


BRIDGE = SpeechT5Bridge()
FAMILY = Family(
    model_type="speecht5",
    architectures=("SpeechT5ForTextToSpeech",),
    module=SpeechT5,
    build=build,
    describe=describe,
    table=TABLE,
    special_tokens=("pad", "unk", "bos", "eos"),
    layout="ended",
    bridge=BRIDGE,
    auto_classes={"SpeechT5ForTextToSpeech": ("AutoModelForTextToSpectrogram", "text-to-speech")},
    tokenizer_class="SpeechT5Tokenizer",
)
