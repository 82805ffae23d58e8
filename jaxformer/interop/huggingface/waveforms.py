"""Reads and writes preprocessor_config.json of models that read waveforms: the sampling rate, and whether waveforms are
normalized.
"""

import dataclasses
from pathlib import Path

from jaxformer.data.fields.waveform import WaveformField
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.folders import read_json, write_json
from jaxformer.interop.huggingface.images import NESTED, PREPROCESSOR

EXTRACTOR = "Wav2Vec2FeatureExtractor"
PROCESSOR = "Wav2Vec2Processor"
IGNORED = ("return_attention_mask", "processor_class", "image_processor_type")
"""Fields of preprocessor_config.json that do not change the features of a single sound."""


def read_waveform_field(folder: Path, field: WaveformField = WaveformField()) -> WaveformField:
    """Returns a data field that prepares waveforms as the feature extractor of a Hugging Face folder does. All other
    settings are those of `field`. If the folder has no feature extractor, waveforms are normalized.

    Raises:
      InputError: If a setting is not supported.
    """
    for name, part in ((NESTED, "feature_extractor"), (PREPROCESSOR, None)):
        path = folder / name
        said = read_json(path) if path.is_file() else None
        said = said if part is None or said is None else said.get(part)
        if said:
            return _read(ConfigReader(said, str(path)), field)
    return field


def _read(reader: ConfigReader, field: WaveformField) -> WaveformField:
    reader.must("feature_extractor_type", EXTRACTOR)
    reader.must("feature_size", 1)
    reader.must("padding_side", "right")
    reader.must("padding_value", 0.0)
    for name in IGNORED:
        reader.get(name)
    rate, normalize = reader.integer("sampling_rate", 16_000), reader.flag("do_normalize", True)
    reader.must("sampling_rate", 16_000)
    reader.finish()
    return dataclasses.replace(field, rate=rate, normalize=normalize)


def write_waveform_field(folder: Path, field: WaveformField, attention_mask: bool) -> None:
    """Writes preprocessor_config.json: the settings of the feature extractor that prepares waveforms as `field` does.
    `attention_mask` is whether the model is given a mask of padding, which only models with norms of frames need.
    """
    value = {
        "feature_extractor_type": EXTRACTOR,
        "processor_class": PROCESSOR,
        "feature_size": 1,
        "sampling_rate": field.rate,
        "do_normalize": field.normalize,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": attention_mask,
    }
    write_json(folder / PREPROCESSOR, value)
