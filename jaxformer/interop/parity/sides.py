"""Defines `Sides`: a run, and the Hugging Face folder that it was exported to or imported from. The parity certificate
compares the predictions of the run with those of the transformers library, which loads the folder.
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
"""Tolerance for the differences between the predictions of a run and of the transformers library: probabilities,
entries of unit vectors, and regression values. Differences are max |ours - theirs| / max(1, max |theirs|).
"""
# No whitespace at the ends: `predict` strips it, but transformers does not.
TEXTS = ("The dog ran.", "It has 3 naïve cats!", "a  light  shone")
SPECIALS = 8
"""Upper bound for the number of special tokens that any tokenizer adds to a text or a pair of texts. Test inputs leave
room for them.
"""


@dataclasses.dataclass(frozen=True)
class Sides:
    """The two sides of a comparison: a run, and the Hugging Face folder that it was exported to or imported from, which
    the transformers library loads.
    """

    run: Run
    """Run to compare. It computes in float32 on the CPU, with parameters rounded to the dtype of the Hugging Face
    folder.
    """
    folder: Path
    """Path of the Hugging Face folder."""
    round: Callable[[torch.nn.Module], None]
    """Function that rounds the weights of a PyTorch model in place, to the dtype of the Hugging Face folder."""

    def predict(self, inputs: Sequence[Any]) -> list[Any]:
        """Returns the predictions of the run for raw inputs, such as texts or paths of images, one per input."""
        with on_cpu():
            return self.run.predict(list(inputs))

    def pipeline(self, task: str, **settings: Any) -> Any:
        """Loads a pipeline of the transformers library, such as `fill-mask`, from the Hugging Face folder, and rounds
        its weights in the same way as those of the run. `settings` are further arguments of the pipeline.
        """
        with reading(f"a pipeline for {task}"), warnings.catch_warnings(action="ignore"):
            make: Any = transformers.pipeline  # Its overloads know no task that is computed.
            found = make(task, str(self.folder), device="cpu", dtype=torch.float32, **settings)
        self.round(found.model)
        return found

    def network(self, auto: Any) -> Any:
        """Loads the PyTorch model of the Hugging Face folder with a class of the transformers library, such as
        `AutoModelForCausalLM`, and rounds its weights in the same way as those of the run.
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

    def mask_unused_ids(self, network: torch.nn.Module) -> None:
        """Makes a PyTorch model assign probability 0 to token ids that the tokenizer does not have, as the prediction
        of a run does. The vocabulary of a model may be larger than that of its tokenizer.
        """
        size = self.run.require_tokenizer().vocab_size

        def remove(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            output.logits[..., size:] = -torch.inf

        network.register_forward_hook(remove)

    def short(self, texts: Sequence[Any], parts: Callable[[Any], Sequence[str]] = lambda text: [text]) -> list[Any]:
        """Returns the texts that, with special tokens, fit the maximum length of the model. Longer ones would be
        truncated, which the two sides may do differently.

        Args:
          texts: Texts, or objects that contain texts.
          parts: Function that takes an item of `texts` and returns the list of texts that it contains.
        """
        tokenizer, longest = self.run.require_tokenizer(), self.run.model.require_text_limits().max_length
        sizes = [sum(len(tokenizer.encode(part)) for part in parts(text)) for text in texts]
        return [text for text, size in zip(texts, sizes, strict=True) if size + SPECIALS <= longest]


def line(what: str, where: str, ours: Sequence[Any], theirs: Sequence[Any]) -> Line:
    """Compares the numbers that the run (`ours`) and the transformers library (`theirs`) predict. Returns an entry of
    the parity certificate with the name `what` and the description of the inputs `where`.

    The measured difference is max |ours - theirs| / max(1, max |theirs|).
    """
    mine, other = (np.asarray(side, np.float64) for side in (ours, theirs))
    if mine.shape != other.shape:
        return Line(what, where, float("inf"), ANSWERS, f"shapes {mine.shape} here and {other.shape} in PyTorch")
    difference = float(np.abs(mine - other).max(initial=0))
    return Line(what, where, difference / max(1.0, np.abs(other).max(initial=0)), ANSWERS, "from raw inputs")
