"""Reads and writes preprocessor_config.json: the settings of the Hugging Face feature extractor, which converts audio
to log-mel features.
"""

from pathlib import Path
from typing import Any

from jaxformer.data.fields.sound import SoundField
from jaxformer.data.transforms.log_mel import LogMel
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.folders import read_json, write_json
from jaxformer.interop.huggingface.images import NESTED, PREPROCESSOR

EXTRACTOR = "WhisperFeatureExtractor"
DERIVED = ("mel_filters", "n_samples", "nb_max_frames", "processor_class", "image_processor_type")
"""Fields of preprocessor_config.json that are not compared, because they are determined by other fields or do not
change the features.
"""


def sound_field(model: Any) -> SoundField:
    """Returns the data field that reads audio and computes the log-mel features that a model takes as input."""
    log_mel = LogMel(model.mels)
    return SoundField(seconds=model.frames / log_mel.frames_per_second, log_mel=log_mel)


def check_extractor(folder: Path, model: Any) -> None:
    """Raises InputError if the feature extractor of a Hugging Face folder computes features that the model does not
    expect, or if one of its settings is not supported. Accepts a folder without a feature extractor.
    """
    for name, part in ((NESTED, "feature_extractor"), (PREPROCESSOR, None)):
        path = folder / name
        said = read_json(path) if path.is_file() else None
        said = said if part is None or said is None else said.get(part)
        if said:
            _check(ConfigReader(said, str(path)), model)
            return


def _check(reader: ConfigReader, model: Any) -> None:
    log_mel = LogMel(model.mels)
    reader.must("feature_extractor_type", EXTRACTOR)
    reader.must("feature_size", log_mel.mels)
    reader.must("sampling_rate", log_mel.rate)
    reader.must("hop_length", log_mel.hop)
    reader.must("n_fft", log_mel.window)
    reader.must("chunk_length", _chunk(model))
    reader.must("padding_side", "right")
    for name, value in (("padding_value", 0.0), ("dither", 0.0), ("do_normalize", False)):
        reader.must(name, value)
    reader.must("return_attention_mask", False, True)  # The model does not read the mask.
    for name in DERIVED:
        reader.get(name)
    reader.finish()


def write_extractor(folder: Path, model: Any) -> None:
    """Writes preprocessor_config.json: the settings of the feature extractor that computes the input of a model."""
    log_mel = LogMel(model.mels)
    value = {
        "feature_extractor_type": EXTRACTOR,
        "processor_class": "WhisperProcessor",
        "feature_size": log_mel.mels,
        "sampling_rate": log_mel.rate,
        "hop_length": log_mel.hop,
        "n_fft": log_mel.window,
        "chunk_length": _chunk(model),
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
    write_json(folder / PREPROCESSOR, value)


def _chunk(model: Any) -> float:
    """Returns the length in seconds of the audio that the model takes as input, as an int if it is a whole number."""
    seconds = model.frames / LogMel(model.mels).frames_per_second
    return int(seconds) if seconds == int(seconds) else seconds
