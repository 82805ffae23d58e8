"""DiT-B (Peebles & Xie 2023) on ImageNet, of 256 × 256 pixels, trained by flow matching.

    python train.py configs/dit_b_imagenet.py --mesh.data -1 --workdir runs/dit_b
    jaxformer predict runs/dit_b 207 --out page.html

The optimizer, the batch and the number of blocks, heads and tokens are those of DiT-B/2. The paper trains on latents of
an autoencoder; here, patches of 16 × 16 pixels give the same number of tokens, and the model predicts the image (Li &
He 2025), because a patch has as many values as the model is wide. TFDS prepares imagenet2012 from its archives, which
one downloads by hand. Peebles & Xie report an FID of 43.5 for DiT-B/2 after 400,000 steps. Not run to its end yet: no
accelerator was at hand.
"""

import jaxformer as jf

LABELS = tuple(map(str, range(1000)))  # TFDS numbers the classes in the order of their WordNet names.

experiment = jf.Experiment(
    model=jf.models.Dit(jf.models.dit_stack(dtype="bfloat16"), LABELS, image=256, patch=16),
    objective=jf.objectives.FlowMatching(predicts="image", sampling=jf.Sampling(steps=50, guidance=4.0)),
    data=jf.data.Data(
        train=jf.data.Tfds("imagenet2012", split="train"),
        validation=jf.data.Tfds("imagenet2012", split="validation"),
        task=jf.data.ImagesFromLabels(
            jf.data.ImageField(256, augmentation=jf.data.Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0))),
            labels=LABELS,
        ),
        batch=256,
        workers=32,
    ),
    tokenizer=None,
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=1e-4, decay="constant"), weight_decay=0.0, ema=0.9999
    ),
    steps=400_000,
    evaluation=jf.Evaluation(every=20_000, batches=40),
    checkpoint=jf.Checkpoint(every=10_000),
    log=jf.Log(every=100),
)
