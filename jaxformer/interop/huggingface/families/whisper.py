"""Whisper family (Radford et al. 2022): conversion from and to Hugging Face transformers."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from jaxformer.data.tasks.transcription import TranscriptField, Transcription
from jaxformer.data.tokenizers.speech_tokens import SpeechTokens
from jaxformer.decoding.settings import Decoding
from jaxformer.decoding.transcribing import AUTO, Transcribing
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.bridge import Bridge, Source, mean_cross_entropy
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, NAMES, Family, sizes_of_sides, stack
from jaxformer.interop.huggingface.families.marian import stack_rows
from jaxformer.interop.huggingface.families.rows import norm
from jaxformer.interop.huggingface.folders import GENERATION, Folder
from jaxformer.interop.huggingface.generation_config import read_decoding
from jaxformer.interop.huggingface.sounds import check_extractor, sound_field, write_extractor
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.layers.attention import Attention
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.base import Model
from jaxformer.models.whisper import Whisper
from jaxformer.objectives.speech_to_text import SpeechToText
from jaxformer.runs.run import Run


def _convolution(ours: str, theirs: str, channels: str) -> list[ParamMapping]:
    pattern = f"d {channels} w -> w {channels} d"
    return [
        ParamMapping(f"{ours}/kernel", f"{theirs}.weight", pattern),
        ParamMapping(f"{ours}/bias", f"{theirs}.bias"),
    ]


TABLE = Table(
    (
        *_convolution("stem/first", "model.encoder.conv1", "n"),
        *_convolution("stem/second", "model.encoder.conv2", "i"),
        ParamMapping("audio_positions/bias", "model.encoder.embed_positions.weight"),
        ParamMapping("embeddings/token", "model.decoder.embed_tokens.weight", copies=("proj_out.weight",)),
        ParamMapping("embeddings/position", "model.decoder.embed_positions.weight"),
        *stack_rows("encoder"),
        *norm("encoder/norm", "model.encoder.layer_norm"),
        *stack_rows("decoder"),
        *norm("decoder/norm", "model.decoder.layer_norm"),
    )
)
NOT_HERE = ("apply_spec_augment", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop")
"""Names of config fields that only affect training and are not supported. If one is set, the import reports that it is
ignored.
"""
OTHERS = (
    *(f"mask_{kind}_{part}" for kind in ("time", "feature") for part in ("prob", "length", "min_masks")),
    *("classifier_proj_size", "num_hidden_layers", "forced_decoder_ids", "max_length"),
)
"""Names of config fields that are ignored: settings of SpecAugment and of classifiers, and old generation settings."""


def build(reader: ConfigReader, names: Collection[str]) -> Whisper:
    """Builds the model for a Whisper config."""
    del names
    reader.must("scale_embedding", False)
    reader.must("tie_word_embeddings", True)
    reader.must("use_weighted_layer_sum", False)
    reader.must("median_filter_width", 7)
    for name in NOT_HERE:
        reader.only_training(name)
    for name in OTHERS:
        reader.get(name)

    def make(side: str) -> Transformer:
        return stack(
            reader,
            width=reader.integer("d_model", 384),
            depth=reader.integer(f"{side}_layers", 4),
            heads=reader.integer(f"{side}_attention_heads", 6),
            attention=Attention(key_bias=False),
            mlp=Mlp(reader.integer(f"{side}_ffn_dim", 1536), reader.choice("activation_function", ACTIVATIONS, "gelu")),
            norm=LayerNorm(1e-5),
            dropout=reader.rate("dropout"),
            attention_dropout=reader.rate("attention_dropout"),
        )

    with reader.located():
        return Whisper(
            make("encoder"),
            make("decoder"),
            vocab=reader.integer("vocab_size", 51_865),
            max_length=reader.integer("max_target_positions", 448),
            frames=2 * reader.integer("max_source_positions", 1500),
            mels=reader.integer("num_mel_bins", 80),
        )


def describe(model: Whisper) -> dict[str, Any]:
    """Converts the model to a Whisper config."""
    return sizes_of_sides(model) | {
        "architectures": ["WhisperForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": model.vocab,
        "num_mel_bins": model.mels,
        "max_source_positions": model.positions,
        "max_target_positions": model.max_length,
        "d_model": model.encoder.width,
        "activation_function": NAMES[model.encoder.mlp.activation],
        "dropout": model.encoder.dropout,
        "attention_dropout": model.encoder.attention_dropout,
        "activation_dropout": 0.0,
        "scale_embedding": False,
        "tie_word_embeddings": True,
    }


# Settings of transcription

THRESHOLDS = {
    "compression_ratio": "compression_ratio_threshold",
    "log_probability": "logprob_threshold",
    "no_speech": "no_speech_threshold",
    "condition_on_previous": "condition_on_prev_tokens",
    "latest_start": "max_initial_timestamp_index",
}
"""Maps fields of `Transcribing`, the transcription settings, to fields of generation_config.json. If a field is missing
in the file, the default of `Transcribing` is used.
"""
OF_TOKENS = ("no_timestamps_token_id", "lang_to_id", "task_to_id", "prev_sot_token_id", "forced_decoder_ids")
"""Names of generation_config.json fields with token ids, which are read from the tokenizer instead."""
RETURNED = ("return_timestamps", "return_segments", "return_token_timestamps", "return_language")
"""Names of generation_config.json fields that select outputs. They are ignored, because `predict` always returns
segments.
"""
SPEECH = (*THRESHOLDS.values(), *OF_TOKENS, *RETURNED)
SPEECH += ("is_multilingual", "language", "task", "alignment_heads", "prompt_condition_type")


def read_transcribing(folder: Folder, tokens: SpeechTokens) -> Transcribing:
    """Reads how audio is transcribed (language, task, thresholds and alignment heads) from generation_config.json.
    `tokens` are the special tokens of the tokenizer.

    Raises:
      InputError: If the file contradicts the tokenizer.
    """
    said, where = folder.generation, folder.path / GENERATION
    if (stated := said.get("no_timestamps_token_id", tokens.no_timestamps)) != tokens.no_timestamps:
        raise InputError(f"{where}: no_timestamps_token_id={stated}: the tokenizer has {tokens.no_timestamps}")
    found: dict[str, Any] = {ours: said[theirs] for ours, theirs in THRESHOLDS.items() if said.get(theirs) is not None}
    if said.get("is_multilingual", "lang_to_id" in said):
        language = said.get("language") or AUTO
        codes = {code for code in tokens.languages if language in (code, f"<|{code}|>")}
        found["language"] = AUTO if language == AUTO else next(iter(codes), language)
        found["speech_task"] = said.get("task") or "transcribe"
    if heads := said.get("alignment_heads"):
        found["alignment_heads"] = tuple((int(layer), int(head)) for layer, head in heads)
    transcribing = Transcribing(**found)
    if transcribing.language not in ("", AUTO):
        tokens.prefix(transcribing.language, transcribing.speech_task)
    return transcribing


def generation_fields(transcribing: Transcribing, tokens: SpeechTokens) -> dict[str, Any]:
    """Converts the settings for transcribing to fields of generation_config.json, including the ids of the special
    tokens in `tokens`.
    """
    found: dict[str, Any] = {
        "is_multilingual": transcribing.multilingual,
        "no_timestamps_token_id": tokens.no_timestamps,
        "max_initial_timestamp_index": transcribing.latest_start,
        "prev_sot_token_id": tokens.previous,
        "alignment_heads": [list(pair) for pair in transcribing.alignment_heads] or None,
    }
    if transcribing.multilingual:
        found |= {"lang_to_id": {f"<|{code}|>": number for code, number in tokens.languages.items()}}
        found |= {"task_to_id": dict(tokens.tasks), "task": transcribing.speech_task}
        found |= {} if transcribing.language == AUTO else {"language": transcribing.language}
    return {name: value for name, value in found.items() if value is not None}


class WhisperBridge(Bridge):
    """Chooses the training objective and the data task of an imported speech recognition model, and computes the labels
    and the loss of the corresponding class of the transformers library.
    """

    arguments: ClassVar[Mapping[str, str]] = {
        "log_mel": "input_features",
        "tokens": "decoder_input_ids",
        "segments": "decoder_attention_mask",
    }
    processor = "AutoProcessor"

    def objective(self, source: Source, model: Whisper) -> SpeechToText:
        """Returns the speech recognition objective, with the decoding and transcription settings in the
        generation_config.json of the imported folder.
        """
        folder, tokenizer = source.opened, source.require_tokenizer()
        check_extractor(folder.path, model)
        tokens = SpeechTokens.of(tokenizer)
        transcribing = read_transcribing(folder, tokens)
        plain = {name: value for name, value in folder.generation.items() if name not in SPEECH}
        if not {"max_length", "max_new_tokens"} & plain.keys():
            plain["max_length"] = model.max_length
        general = Folder(folder.path, {}, plain, folder.tensors)
        decoding = read_decoding(general, Decoding(max_new_tokens=None, max_length=model.max_length), tokenizer)
        return SpeechToText(decoding=decoding, transcribing=transcribing)

    def task(self, source: Source, model: Whisper, objective: SpeechToText) -> Transcription:
        """Returns a task of sounds with transcripts. The language of the transcripts is that of the objective, or
        English if the model detects the language.
        """
        said = objective.transcribing
        language = "en" if said.language == AUTO else said.language
        text = TranscriptField(length=model.max_length, language=language, speech_task=said.speech_task)
        return Transcription(sound_field(model), text)

    def to_exportable_form(self, run: Run) -> Run:
        """Returns the run unchanged. Unused token ids are not removed, because the model generates ids of timestamps
        that the tokenizer may not have.
        """
        return run

    def generation_fields(self, run: Run) -> dict[str, Any]:
        """Returns the fields of generation_config.json with the transcription settings of the run."""
        objective: Any = run.objective  # A `SpeechToText`.
        return generation_fields(objective.transcribing, SpeechTokens.of(run.require_tokenizer()))

    def write_files(self, folder: Any, model: Model) -> None:
        """Writes the preprocessor_config.json of the feature extractor, which converts audio to the log-mel input of
        the model.
        """
        write_extractor(folder, model)

    def labels(self, model: Whisper, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the target tokens in `rows` as label arguments of the corresponding class of the transformers
        library, for parity checks. Padding has the label -100, which the class ignores.
        """
        return {"labels": np.where(rows["segments"] > 0, rows["targets"], -100)}

    def loss(self, outputs: Mapping[str, jax.Array], rows: Mapping[str, jax.Array]) -> jax.Array:
        """Computes the cross-entropy of the target tokens, in the same way as the transformers library."""
        return mean_cross_entropy(outputs["logits"], rows["targets"], rows["segments"])


BRIDGE = WhisperBridge()
FAMILY = Family(
    model_type="whisper",
    architectures=("WhisperForConditionalGeneration",),
    module=Whisper,
    build=build,
    describe=describe,
    table=TABLE,
    special_tokens=("pad", "unk", "bos", "eos"),
    bridge=BRIDGE,
    auto_classes={
        "WhisperForConditionalGeneration": ("AutoModelForSpeechSeq2Seq", "automatic-speech-recognition"),
    },
    tokenizer_class="WhisperTokenizer",
)
