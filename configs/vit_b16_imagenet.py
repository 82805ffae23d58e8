"""ViT-B/16 (Dosovitskiy et al. 2021) on ImageNet alone, with the training of DeiT-B (Touvron et al. 2021).

    python train.py configs/vit_b16_imagenet.py --mesh.data -1 --workdir runs/vit_b16

TFDS prepares imagenet2012 from its archives, which one downloads by hand. Touvron et al. report 81.8% after 300 epochs.
Not run to its end yet: no accelerator was at hand.
"""

from jaxformer.config import Checkpoint, Evaluation, Experiment, Log
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import Tfds
from jaxformer.data.tasks.images import LabelledImages
from jaxformer.data.transforms.image import Augmentation
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.residual import Residual
from jaxformer.layers.transformer import Transformer
from jaxformer.models.vit import Vit
from jaxformer.objectives.image_classification import ImageClassification
from jaxformer.training.optimizers import AdamW, Schedule

LABELS = tuple(map(str, range(1000)))  # TFDS numbers the classes in the order of their WordNet names.
BATCH, EPOCH = 1024, 1_281_167 // 1024

experiment = Experiment(
    model=Vit(
        Transformer(
            width=768,
            depth=12,
            heads=12,
            norm=LayerNorm(1e-6),
            dropout=0.0,
            attention_dropout=0.0,
            dtype="bfloat16",
            residual=Residual(drop_path=0.1),
        ),
        LABELS,
        image=224,
        patch=16,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    objective=ImageClassification(label_smoothing=0.1),
    data=Data(
        train=Tfds("imagenet2012", split="train"),
        validation=Tfds("imagenet2012", split="validation"),
        task=LabelledImages(labels=LABELS, augmentation=Augmentation(operations=2), crop=0.875, mixup=0.8, cutmix=1.0),
        batch=BATCH,
        workers=32,
    ),
    tokenizer=None,
    optimizer=AdamW(schedule=Schedule(peak=1e-3, warmup=5 * EPOCH, decay="cosine"), weight_decay=0.05),
    steps=300 * EPOCH,
    evaluation=Evaluation(every=5 * EPOCH),
    checkpoint=Checkpoint(every=EPOCH),
    log=Log(every=100),
)
