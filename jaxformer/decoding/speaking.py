"""Settings with which models speak texts."""

import dataclasses

from jaxformer import fields
from jaxformer.errors import InputError


@dataclasses.dataclass(frozen=True)
class Speaking:
    """Settings of speech synthesis. They have no effect on training."""

    speed: float = 1.0
    """Speed of the speech relative to that of the training data. Only for models that predict durations."""
    iterations: int = 60
    """Number of iterations of Griffin–Lim, which converts spectrograms to sounds if there is no vocoder."""
    speaker: str = ""
    """Path of a .npy file with the vector of a speaker, such as an x-vector, [size]. Only for models of several
    speakers.
    """
    threshold: float = 0.5
    """Probability of the end, summed over the frames of a decoding step, at which speech ends. Only for models that
    predict one frame after the other.
    """
    longest: float = 20.0
    """Maximum number of frames per token of the text. Only for models that predict one frame after the other."""
    seed: int = 0
    """Random seed of the dropout that remains active when a model predicts one frame after the other."""

    def __post_init__(self):
        fields.check(self)
        for name in ("speed", "longest"):
            if not getattr(self, name) > 0:
                raise InputError(f"objective.speaking.{name}={getattr(self, name)}: expected above 0")
        fields.at_least("objective.speaking.iterations", self.iterations, 0)
        fields.within("objective.speaking.threshold", self.threshold, 0, 1)
