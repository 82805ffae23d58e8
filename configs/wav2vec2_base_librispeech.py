"""wav2vec 2.0 base (Baevski et al. 2020): 12 layers × 768, pretrained on the 960 hours of LibriSpeech.

    python train.py configs/wav2vec2_base_librispeech.py --workdir runs/wav2vec2_base
    python train.py configs/wav2vec2_base_librispeech.py --init facebook/wav2vec2-base --workdir runs/continued

Batches of 384 crops of 15.6 seconds (1.7 hours), 400,000 updates, a linear warm-up of 8% and a linear decay, as in the
paper (§4.2). There, the temperature of the quantizer falls from 2 to 0.5, and single layers are dropped; here, the
temperature is constant, and a run can be forked with another one: `--fork RUN --model.quantizer.temperature 0.5`.
LibriSpeech is prepared elsewhere by TFDS (`librispeech`), with 16,000 samples per second.

Not run yet: it needs accelerators and the data set.
"""

import jaxformer as jf

experiment = jf.Experiment(
    model=jf.models.Wav2Vec2(jf.models.speech_stack(dtype="bfloat16", remat="full")),
    objective=jf.objectives.SpeechContrast(),
    data=jf.data.Data(
        train=jf.data.Tfds("librispeech", split="train_clean100+train_clean360+train_other500"),
        validation=jf.data.Tfds("librispeech", split="dev_clean"),
        task=jf.data.MaskedSpeech(
            audio=jf.data.WaveformField(column="speech", seconds=15.625, array_rate=16_000, crop="random")
        ),
        batch=384,
        workers=8,
    ),
    tokenizer=None,
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=5e-4, warmup=32_000), b2=0.98, eps=1e-6, weight_decay=0.01
    ),
    steps=400_000,
    evaluation=jf.Evaluation(every=5000, batches=10),
    checkpoint=jf.Checkpoint(every=5000),
    log=jf.Log(every=200),
)
