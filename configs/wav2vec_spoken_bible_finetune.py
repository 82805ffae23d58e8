"""The small wav2vec 2.0 of `wav2vec_spoken_bible` fine-tuned as a recognizer with CTC on a tenth of the transcripts.

    python train.py configs/wav2vec_spoken_bible.py --workdir runs/wav2vec_spoken_bible
    python train.py configs/wav2vec_spoken_bible_finetune.py --workdir runs/wav2vec_spoken_bible_finetune
    python train.py configs/wav2vec_spoken_bible_finetune.py --init None --optimizer.freeze --workdir runs/from_nothing

One hour of speech has transcripts. The convolutions are frozen, as in the paper. The last command trains the same
recognizer on the same transcripts without pretraining.

Not run yet.
"""

import jaxformer as jf

FRAMING = jf.data.Framing(kernels=(10, 5, 3, 3, 2), strides=(4, 5, 2, 2, 2))

experiment = jf.Experiment(
    model=jf.models.Wav2Vec2Ctc(
        jf.models.speech_stack(144, 4, 4, norm_position="before"),
        widths=(32, 96, 128, 144, 144),
        framing=FRAMING,
        convolution_norm="layer",
        position_taps=32,
        position_groups=8,
        vocab=32,
    ),
    objective=jf.objectives.Ctc(scored=100),
    data=jf.data.Data(
        train=jf.data.Tfds("spoken_bible/web-10h-short", split="train[:10%]"),
        validation=jf.data.Tfds("spoken_bible/web-10h-short", split="validation"),
        task=jf.data.SpelledSpeech(
            audio=jf.data.WaveformField(seconds=6, rate=8000),
            framing=FRAMING,
            text=jf.data.CharacterField(length=128),
            masking=jf.data.SpanMasking(rate=0.2, length=10),
        ),
        batch=16,
        workers=1,
    ),
    tokenizer=jf.tokenizers.Characters(),
    init="runs/wav2vec_spoken_bible",
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=5e-4, warmup=100, decay="cosine"), freeze=("^features/", "^feature_norm/")
    ),
    steps=1500,
    evaluation=jf.Evaluation(every=250),
    checkpoint=jf.Checkpoint(every=250, best="wer"),
)
