"""wav2vec 2.0 in pretraining (Baevski et al. 2020): conversion from and to Hugging Face transformers."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from jaxformer.data.tasks.waveforms import MaskedSpeech
from jaxformer.data.transforms.span_masking import SpanMasking, negatives
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.bridge import Source
from jaxformer.interop.huggingface.families.family import Family
from jaxformer.interop.huggingface.families.wav2vec2 import (
    WAV2VEC2,
    SpeechBridge,
    describe_encoder,
    encoder_fields,
    read_masking,
)
from jaxformer.interop.huggingface.waveforms import read_waveform_field
from jaxformer.layers.quantizer import ProductQuantizer
from jaxformer.losses.speech_contrast import code_perplexity, contrast
from jaxformer.models.wav2vec2 import Wav2Vec2
from jaxformer.objectives.speech_contrast import SpeechContrast

TEMPERATURE, DIVERSITY = 0.1, 0.1
"""Defaults of the temperature of the contrastive loss, and of the weight of the diversity of codes."""


def build_pretraining(reader: ConfigReader, names: Collection[str]) -> Wav2Vec2:
    """Builds the model in pretraining for a config of wav2vec 2.0."""
    del names
    reader.must("feat_proj_layer_norm", True)  # A field of HuBERT.
    reader.must("apply_spec_augment", True)
    with reader.located():
        quantizer = ProductQuantizer(
            codebooks=reader.integer("num_codevector_groups", 2),
            entries=reader.integer("num_codevectors_per_group", 320),
            width=reader.integer("codevector_dim", 256),
        )
        return Wav2Vec2(
            **encoder_fields(reader),
            quantizer=quantizer,
            projected=reader.integer("proj_codevector_dim", 256),
            quantizer_dropout=reader.rate("feat_quantizer_dropout", 0.0),
        )


def describe_pretraining(model: Wav2Vec2) -> dict[str, Any]:
    """Converts a model in pretraining to a config of wav2vec 2.0."""
    if not model.normalize_features:
        raise InputError("normalize_features=False: only HuBERT has it")
    return {
        "architectures": ["Wav2Vec2ForPreTraining"],
        **describe_encoder(model),
        "num_codevector_groups": model.quantizer.codebooks,
        "num_codevectors_per_group": model.quantizer.entries,
        "codevector_dim": model.quantizer.width,
        "proj_codevector_dim": model.projected,
        "feat_quantizer_dropout": model.quantizer_dropout,
        "contrastive_logits_temperature": TEMPERATURE,
        "diversity_loss_weight": DIVERSITY,
    }


class PretrainingBridge(SpeechBridge):
    """Chooses the objective and the task of an imported model in pretraining, and computes the loss of the
    corresponding class of the transformers library, in which negative examples are indices into the whole batch.
    """

    arguments: ClassVar[Mapping[str, str]] = {**SpeechBridge.arguments, "masked": "mask_time_indices"}
    processor = "AutoFeatureExtractor"

    def objective(self, source: Source, model: Wav2Vec2) -> SpeechContrast:
        """Returns the contrastive objective, with the temperature and the weight in the config of the folder."""
        said = {} if source.folder is None else source.folder.config
        temperature = float(said.get("contrastive_logits_temperature", TEMPERATURE))
        return SpeechContrast(temperature, float(said.get("diversity_loss_weight", DIVERSITY)))

    def task(self, source: Source, model: Wav2Vec2, objective: SpeechContrast) -> MaskedSpeech:
        """Returns a task of masked sounds, with the masking of the config."""
        said = {} if source.folder is None else source.folder.config
        home = source.home if source.folder is None else source.folder.path
        return MaskedSpeech(
            audio=read_waveform_field(home, MaskedSpeech().audio),
            framing=model.framing,
            masking=read_masking(said) or SpanMasking(),
            negatives=int(said.get("num_negatives", 100)),
        )

    def random_inputs(self, model: Wav2Vec2, rng: np.random.Generator) -> list[tuple[str, dict[str, np.ndarray]]]:
        """Returns random waveforms with random masks, `masked` [batch, frames], and `negatives` [batch, frames, 10]."""
        found, masking = self.waveforms(model, rng), SpanMasking(0.5, 3)
        for _, arrays in found:
            frames = model.framing.frames(arrays["samples"].shape[1])
            masked = np.zeros((len(arrays["samples"]), frames), np.uint8)
            for row, length in enumerate(arrays["sample_mask"].sum(1, dtype=int).tolist()):
                masked[row, : model.framing.frames(length)] = masking(model.framing.frames(length), rng)
            drawn = np.stack([negatives(row, 10, rng) for row in masked])
            arrays |= {"masked": masked, "negatives": drawn}
        return found

    def prepare_network(self, network: Any) -> None:
        """Makes the network compute its loss with the default temperature and weight of the diversity."""
        network.config.contrastive_logits_temperature = TEMPERATURE
        network.config.diversity_loss_weight = DIVERSITY

    def labels(self, model: Wav2Vec2, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the negative examples in `rows` as indices into all frames of the batch."""
        count, frames = rows["masked"].shape
        starts = frames * np.arange(count, dtype=np.int32)
        return {"sampled_negative_indices": rows["negatives"] + starts[:, None, None]}

    def outputs(self, model: Wav2Vec2, output: Any, objective: Any = None) -> dict[str, jax.Array]:
        """Returns the predicted and the quantized vectors, under their names in the transformers library."""
        return {"projected_states": output.predicted, "projected_quantized_states": output.quantized}

    def loss_outputs(self, model: Wav2Vec2, output: Any) -> dict[str, jax.Array]:
        """Returns the codes and their probabilities."""
        return {"codes": output.codes, "probabilities": output.probabilities}

    def loss(self, outputs: Mapping[str, jax.Array], rows: Mapping[str, jax.Array]) -> jax.Array:
        """Computes the sum of both losses over all masked frames, in the same way as the transformers library."""
        predicted, quantized = outputs["projected_states"], outputs["projected_quantized_states"]
        found = contrast(predicted, quantized, outputs["codes"], rows["negatives"], TEMPERATURE)
        perplexity = code_perplexity(outputs["probabilities"], rows["masked"])
        diversity = 1 - perplexity.mean() / outputs["probabilities"].shape[-1]
        return (found.losses * rows["masked"]).sum() + DIVERSITY * diversity * rows["masked"].sum()


FAMILY = Family(
    model_type="wav2vec2",
    architectures=("Wav2Vec2ForPreTraining",),
    module=Wav2Vec2,
    build=build_pretraining,
    describe=describe_pretraining,
    table=WAV2VEC2.table,
    bridge=PretrainingBridge(),
)
