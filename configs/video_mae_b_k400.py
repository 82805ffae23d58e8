"""VideoMAE-B (Tong et al. 2022) on the clips of Kinetics-400 without their labels.

    python train.py configs/video_mae_b_k400.py --mesh.data -1 --workdir runs/video_mae_b

Expects the clips in kinetics400/train/CLASS/*.mp4 and kinetics400/validation. After 1,600 epochs and fine-tuning, Tong
et al. report 81.5% for 5 clips and 3 crops. Not run yet: no accelerator was at hand.
"""

import jaxformer as jf

BATCH, EPOCH = 1024, 240_436 // 1024

experiment = jf.Experiment(
    model=jf.models.VideoMaskedAutoencoder(
        jf.models.video_mae_encoder(width=768, depth=12, heads=12, dtype="bfloat16"),
        decoder=jf.models.video_mae_encoder(width=384, depth=4, heads=6, dtype="bfloat16"),
    ),
    objective=jf.objectives.VideoMaskedAutoencoding(),
    data=jf.data.Data(
        train=jf.data.ClipFolders("kinetics400/train"),
        validation=jf.data.ClipFolders("kinetics400/validation"),
        task=jf.data.MaskedTubes(
            jf.data.ClipField(augmentation=jf.data.Augmentation(scale=(0.44, 1.0), ratio=(3 / 4, 4 / 3)))
        ),
        batch=BATCH,
        workers=32,
    ),
    tokenizer=None,
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=1.5e-4 * BATCH / 256, warmup=40 * EPOCH, decay="cosine"),
        weight_decay=0.05,
        b2=0.95,
    ),
    steps=1600 * EPOCH,
    evaluation=jf.Evaluation(every=20 * EPOCH),
    checkpoint=jf.Checkpoint(every=5 * EPOCH),
    log=jf.Log(every=100),
)
