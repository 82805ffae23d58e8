"""Builds the experiment of an imported image model, with its objective and its image preprocessing."""

from pathlib import Path

from jaxformer.config import Experiment
from jaxformer.data.fields.image import ImageField
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.pictures import ImageFolders
from jaxformer.data.tasks.base import Task
from jaxformer.data.tasks.composed import FieldTask
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.families import bridge_of
from jaxformer.interop.huggingface.families.bridge import Source
from jaxformer.interop.huggingface.folders import Folder
from jaxformer.interop.huggingface.images import write_preprocessor
from jaxformer.models.base import Model
from jaxformer.runs.run import Run
from jaxformer.training.optimizers import AdamW, Schedule


def image_experiment(home: Path, model: Model, folder: Folder | None = None) -> Experiment:
    """Builds an experiment for an imported image model. It has no training data, so it can predict but not train.

    Args:
      home: Folder whose image preprocessing settings are used, if it has any.
      model: Imported model.
      folder: Hugging Face folder of the model. None if the model was not imported.
    """
    bridge, source = bridge_of(model), Source(home, folder)
    objective = bridge.objective(source, model)
    data = Data(ImageFolders(""), bridge.task(source, model, objective), batch=8)
    return Experiment(model, objective, data, None, AdamW(Schedule(1e-5)), steps=1)


def write_preparation(folder: Path, run: Run) -> None:
    """Writes the preprocessor_config.json of a run to a Hugging Face folder: the image preprocessing of its task,
    without augmentation.
    """
    write_preprocessor(folder, run.model, image_field_in(run.experiment.data.task))


def image_field_in(task: Task) -> ImageField:
    """Returns the field of a task that preprocesses images, or the frames of clips.

    Raises:
      InputError: If the task has no image field.
    """
    fields = task.fields.values() if isinstance(task, FieldTask) else ()
    for field in fields:
        if (frame := field.frame) is not None:
            return frame
    raise InputError(f"data.task={type(task).__name__}: has no ImageField or ClipField; expected a task of images")
