"""A run of an image model from a Hugging Face folder: what it is for, and how it prepares images."""

from pathlib import Path

from jaxformer.config import Experiment
from jaxformer.data.fields.image import ImageField
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.pictures import ImageFolders
from jaxformer.data.tasks.images import ImageTask, LabelledImages, MaskedPatches
from jaxformer.interop.huggingface.images import read_preparation, write_preprocessor
from jaxformer.models.masked_autoencoder import MaskedAutoencoder
from jaxformer.models.vit import Vit
from jaxformer.objectives.image_classification import ImageClassification
from jaxformer.objectives.image_embedding import ImageEmbedding
from jaxformer.objectives.masked_autoencoding import MaskedAutoencoding
from jaxformer.runs.run import Run
from jaxformer.training.optimizers import AdamW, Schedule


def image_experiment(folder: Path, model: Vit | MaskedAutoencoder) -> Experiment:
    """An experiment that says what the model is; its data is for a config to give that begins with it."""
    preparation = read_preparation(folder, model)
    settings = {"size": model.image, "channels": model.channels} | (preparation.field if preparation else {})
    image = ImageField(**settings)
    if isinstance(model, MaskedAutoencoder):
        objective, task = MaskedAutoencoding(), MaskedPatches(image, model.patch)
    else:
        objective = ImageClassification() if model.labels else ImageEmbedding()
        # Names that are there twice, as one of ImageNet's is, are good to be predicted and not to be learned from.
        named = len(model.labels) > 1 and len(set(model.labels)) == len(model.labels)
        task = LabelledImages(image, labels=model.labels) if named else ImageTask(image)
    data = Data(ImageFolders(""), task, batch=8)
    return Experiment(model, objective, data, None, AdamW(Schedule(1e-5)), steps=1)


def write_preparation(folder: Path, run: Run) -> None:
    """Writes how the run prepares images that it does not augment."""
    write_preprocessor(folder, run.model, run.experiment.data.task.image)
