"""A run of an image model from a Hugging Face folder: what it is for, and how it prepares images."""

from pathlib import Path

from jaxformer.config import Experiment
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.pictures import ImageFolders
from jaxformer.interop.huggingface.families import bridge_of
from jaxformer.interop.huggingface.families.bridge import Source
from jaxformer.interop.huggingface.folders import Folder
from jaxformer.interop.huggingface.images import write_preprocessor
from jaxformer.models.base import Model
from jaxformer.runs.run import Run
from jaxformer.training.optimizers import AdamW, Schedule


def image_experiment(home: Path, model: Model, folder: Folder | None = None) -> Experiment:
    """A placeholder experiment for an imported model; it has no training data.

    Args:
      home: where the preparation of images is read, if it is there.
      model: the model.
      folder: the Hugging Face folder of the model; None for a model that was not imported.
    """
    bridge, source = bridge_of(model), Source(home, folder)
    objective = bridge.objective(source, model)
    data = Data(ImageFolders(""), bridge.task(source, model, objective), batch=8)
    return Experiment(model, objective, data, None, AdamW(Schedule(1e-5)), steps=1)


def write_preparation(folder: Path, run: Run) -> None:
    """Writes how the run prepares images that it does not augment."""
    write_preprocessor(folder, run.model, run.experiment.data.task.image)
