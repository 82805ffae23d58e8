"""Objective of models that predict one group of frames of speech after the other (Ao et al. 2022)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from jaxformer import fields
from jaxformer.decoding.speaking import Speaking
from jaxformer.errors import InputError
from jaxformer.losses.speech_frames import frame_losses
from jaxformer.metrics.averages import Average, Loss
from jaxformer.metrics.base import Metric
from jaxformer.metrics.means import Mean, auxiliary
from jaxformer.models.base import Model
from jaxformer.models.speech_t5 import SpeechT5
from jaxformer.objectives.base import Objective
from jaxformer.predictors.frame_speech import FrameSpeaker


@dataclasses.dataclass(frozen=True)
class SpeechFrames(Objective[SpeechT5]):
    """Speech synthesis with SpeechT5: the mean absolute errors of the log-mel spectrogram before and after the postnet,
    the cross-entropy of the end of the speech (Shen et al. 2018), and the guided attention loss (Tachibana et al.
    2018), which is small where the text and the speech advance at the same rate.

    Each group of frames is predicted from the earlier groups of the recording (teacher forcing).
    """

    guided_weight: float = 10.0
    """Weight of the guided attention loss. 0 leaves it out."""
    guided_heads: int = 2
    """Number of heads of each decoder layer whose cross-attention is guided."""
    guided_sigma: float = 0.4
    """Width of the band around the diagonal in which the guided attention loss is small, as a fraction of the text."""
    speaking: Speaking = Speaking()
    """Settings for speaking texts, such as the speaker. They have no effect on training."""

    model_inputs = ("tokens", "segments", "frames", "speaker")
    required = ("tokens", "frames", "spectrogram", "frame_mask", "speaker")
    example_task = "SpokenText"

    def __post_init__(self):
        fields.check(self)
        fields.at_least("objective.guided_weight", self.guided_weight, 0)
        fields.at_least("objective.guided_heads", self.guided_heads, 1)
        if not self.guided_sigma > 0:
            raise InputError(f"objective.guided_sigma={self.guided_sigma}: expected above 0")

    @property
    def loss_weights(self) -> Mapping[str, float]:
        guided = {"attention": self.guided_weight} if self.guided_weight else {}
        return {"spectrogram": 1.0, "before": 1.0, "stop": 1.0} | guided

    def check_model(self, model: Model) -> None:
        if not {"frames", "speaker"} <= model.inputs().keys():
            raise self.wrong_model(model, "a SpeechT5")

    def check(self, model: SpeechT5, row: Mapping[str, Any]) -> None:
        super().check(model, row)
        (frames, mels), size = (row["spectrogram"].capacity, *row["spectrogram"].shape), row["speaker"].capacity
        groups = row["frames"].capacity
        if mels != model.mels:
            raise InputError(f"data.task.audio.log_mel.mels={mels}: expected the model's, {model.mels}")
        if groups * model.reduction != frames:
            raise InputError(f"data.task.reduction={frames // groups}: expected the model's, {model.reduction}")
        if groups > model.max_frames:
            most = model.max_frames * model.reduction
            raise InputError(f"data.task.audio: rows have {frames} frames; the model has room for {most}")
        if size != model.speaker_size:
            raise InputError(
                f"data.task.speaker.length={size}: expected the model's speaker_size, {model.speaker_size}"
            )

    def __call__(self, model: SpeechT5, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Computes the losses of a batch, as weighted means over frames.

        Args:
          model: a SpeechT5.
          params: model parameters.
          batch: tokens, segments [batch, length]; frames [batch, groups, mels]; spectrogram [batch, groups ·
            reduction, mels]; frame_mask [batch, groups · reduction]; speaker [batch, size].
          key: PRNG key for dropout. If None, the model is evaluated, without the dropout of the prenet.
        """
        output = self.apply_model(model, params, batch, key, return_memory_attention=self.guided_weight > 0)
        return frame_losses(output, batch, self.guided_heads, self.guided_sigma) | auxiliary(output)

    def metrics(self, model: SpeechT5) -> tuple[Metric, ...]:
        """Returns the loss and its parts."""
        return (Loss.of(self.loss_weights), *map(Average, self.loss_weights))

    def predictor(self, model: SpeechT5, params: Any, tokenizer: Any) -> FrameSpeaker:
        return FrameSpeaker(model, params, tokenizer, self.speaking)
