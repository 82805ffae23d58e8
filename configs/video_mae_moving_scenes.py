"""A small VideoMAE (Tong et al. 2022) on 4,000 clips of moving emoji without their labels, on two CPU cores.

    python train.py configs/video_mae_moving_scenes.py --workdir runs/scenes_mae
    python train.py configs/video_mae_moving_scenes_finetune.py --init runs/scenes_mae --workdir runs/scenes

No result of a run to its end has been recorded yet.
"""

import jaxformer as jf

experiment = jf.Experiment(
    model=jf.models.VideoMaskedAutoencoder(
        jf.models.video_mae_encoder(width=96, depth=4, heads=3),
        decoder=jf.models.video_mae_encoder(width=64, depth=2, heads=2),
        image=64,
        frames=8,
        patch=8,
        tubelet=2,
        mask_rate=0.75,
        mean=(0.5,),
        std=(0.5,),
    ),
    objective=jf.objectives.VideoMaskedAutoencoding(),
    data=jf.data.Data(
        train=jf.data.Tfds("moving_scenes", split="train"),
        validation=jf.data.Tfds("moving_scenes", split="validation"),
        task=jf.data.MaskedTubes(jf.data.ClipField(64, frames=8, sampling="uniform"), patch=8),
        batch=32,
    ),
    tokenizer=None,
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=1.5e-3, warmup=200, decay="cosine"), weight_decay=0.05, b2=0.95
    ),
    steps=6000,
    evaluation=jf.Evaluation(every=1000),
    checkpoint=jf.Checkpoint(every=1000),
    log=jf.Log(every=100),
)
