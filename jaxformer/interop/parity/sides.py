"""Defines `Sides`: a run, and the Hugging Face folder that the transformers library loads. The parity certificate
compares the answers of both sides to raw inputs.
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import transformers

from jaxformer.config import override
from jaxformer.interop.parity.compare import on_cpu, one_by_one, reading
from jaxformer.interop.parity.lines import Line
from jaxformer.objectives.base import Objective
from jaxformer.runs.run import Run

ObjectiveT = TypeVar("ObjectiveT", bound=Objective)
ANSWERS = 1e-4
"""Tolerance for the differences between answers: probabilities, entries of unit vectors, and regression values.
Differences are max |ours - theirs| / max(1, max |theirs|).
"""
# No whitespace at the ends: `predict` strips it, but transformers does not.
TEXTS = ("The dog ran.", "It has 3 naïve cats!", "a  light  shone")
SPECIALS = 8
"""Maximum number of special tokens that are added to a text or a pair of texts. An upper bound for all tokenizers."""


@dataclasses.dataclass(frozen=True)
class Sides:
    """The two sides of a comparison: a run, and the Hugging Face folder that the transformers library loads."""

    run: Run
    """Run to compare. It computes in float32 on the CPU, with parameters rounded to the dtype of the export."""
    folder: Path
    """Path of the Hugging Face folder."""
    round: Callable[[torch.nn.Module], None]
    """Function that rounds the weights of a PyTorch model to the dtype of the export, in place."""

    def predict(self, inputs: Sequence[Any]) -> list[Any]:
        """Returns the answers of the run to raw inputs."""
        with on_cpu():
            return self.run.predict(list(inputs))

    def pipeline(self, task: str, **settings: Any) -> Any:
        """Loads a transformers pipeline from the folder."""
        with reading(f"a pipeline for {task}"), warnings.catch_warnings(action="ignore"):
            make: Any = transformers.pipeline  # Its overloads know no task that is computed.
            found = make(task, str(self.folder), device="cpu", dtype=torch.float32, **settings)
        self.round(found.model)
        return found

    def network(self, auto: Any) -> Any:
        """Loads the PyTorch model of the Hugging Face folder with an auto class, such as `AutoModelForCausalLM`. Rounds
        the weights to the dtype of the export, in the same way as those of the run.
        """
        with reading(auto.__name__):
            found = auto.from_pretrained(self.folder, dtype=torch.float32, local_files_only=True).eval()
        one_by_one(found)
        self.round(found)
        return found

    def objective(self, kind: type[ObjectiveT]) -> ObjectiveT:
        """Returns the objective of the run. Raises TypeError if it is not of the given class."""
        found = self.run.objective
        if not isinstance(found, kind):
            raise TypeError(f"the objective is a {type(found).__name__}; expected a {kind.__name__}")
        return found

    def with_objective(self, **changes: Any) -> "Sides":
        """Returns a copy in which fields of the run's objective have the values in `changes`."""
        experiment = override(self.run.experiment, {f"objective.{name}": value for name, value in changes.items()})
        return dataclasses.replace(self, run=dataclasses.replace(self.run, experiment=experiment))

    def only_pieces(self, network: torch.nn.Module) -> None:
        """Makes a PyTorch model give probability 0 to ids that the tokenizer does not have, as `predict` does for the
        JAX model.
        """
        size = self.run.require_tokenizer().vocab_size

        def remove(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            output.logits[..., size:] = -torch.inf

        network.register_forward_hook(remove)

    def short(self, texts: Sequence[Any], parts: Callable[[Any], Sequence[str]] = lambda text: [text]) -> list[Any]:
        """Selects the texts that fit the maximum length of the model, so that neither side truncates them.

        Args:
          texts: Texts, or objects that contain texts.
          parts: Function that takes an item of `texts` and returns the texts that it contains.
        """
        tokenizer, longest = self.run.require_tokenizer(), self.run.model.require_text_limits().max_length
        sizes = [sum(len(tokenizer.encode(part)) for part in parts(text)) for text in texts]
        return [text for text, size in zip(texts, sizes, strict=True) if size + SPECIALS <= longest]


def line(what: str, where: str, ours: Sequence[Any], theirs: Sequence[Any]) -> Line:
    """Compares the numbers of both sides. Returns an entry of the certificate.

    The measured difference is max |ours - theirs| / max(1, max |theirs|).
    """
    mine, other = (np.asarray(side, np.float64) for side in (ours, theirs))
    if mine.shape != other.shape:
        return Line(what, where, float("inf"), ANSWERS, f"shapes {mine.shape} here and {other.shape} in PyTorch")
    difference = float(np.abs(mine - other).max(initial=0))
    return Line(what, where, difference / max(1.0, np.abs(other).max(initial=0)), ANSWERS, "from raw inputs")
