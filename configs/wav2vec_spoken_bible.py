"""A small wav2vec 2.0 pretrained on the World English Bible as read by espeak-ng, without transcripts, on two cores.

    python train.py configs/wav2vec_spoken_bible.py --workdir runs/wav2vec_spoken_bible
    python train.py configs/wav2vec_spoken_bible_finetune.py --workdir runs/wav2vec_spoken_bible_finetune

The encoder is that of `ctc_spoken_bible`. Half of the frames are masked, in spans of 200 ms, and the model chooses the
quantized frame among 50 others of the same sound. The second command fine-tunes it with a tenth of the transcripts.

Not run yet.
"""

import jaxformer as jf

FRAMING = jf.data.Framing(kernels=(10, 5, 3, 3, 2), strides=(4, 5, 2, 2, 2))

experiment = jf.Experiment(
    model=jf.models.Wav2Vec2(
        jf.models.speech_stack(144, 4, 4, norm_position="before"),
        widths=(32, 96, 128, 144, 144),
        framing=FRAMING,
        convolution_norm="layer",
        position_taps=32,
        position_groups=8,
        quantizer=jf.layers.ProductQuantizer(codebooks=2, entries=64, width=96, temperature=1.0),
        projected=96,
    ),
    objective=jf.objectives.SpeechContrast(),
    data=jf.data.Data(
        train=jf.data.Tfds("spoken_bible/web-10h-short", split="train"),
        validation=jf.data.Tfds("spoken_bible/web-10h-short", split="validation"),
        task=jf.data.MaskedSpeech(
            audio=jf.data.WaveformField(seconds=6, rate=8000, crop="random"), framing=FRAMING, negatives=50
        ),
        batch=16,
        workers=1,
    ),
    tokenizer=None,
    optimizer=jf.optimizers.AdamW(schedule=jf.optimizers.Schedule(peak=1e-3, warmup=300)),
    steps=3000,
    evaluation=jf.Evaluation(every=500),
    checkpoint=jf.Checkpoint(every=500, best="contrastive_accuracy"),
)
