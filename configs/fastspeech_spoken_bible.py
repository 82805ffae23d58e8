"""FastSpeech 2 (Ren et al. 2021), small, on the World English Bible as read by espeak-ng, on two CPU cores.

    python train.py configs/fastspeech_spoken_bible.py --workdir runs/fastspeech
    jaxformer predict runs/fastspeech "In the beginning was the Word." --out speech.wav
    jaxformer predict runs/fastspeech "In the beginning was the Word." --out page.html

The data set is read aloud when it is prepared (`apt-get install espeak-ng`, `pip install 'jaxformer[audio]'`): two
hours of verses of up to 100 characters for training, in one voice, with the times of phonemes. `predict` takes the
phonemes of a text from espeak-ng too.
The spectrograms have the frames and bands of SpeechT5's, so that its vocoder can replace Griffin–Lim:
`--vocoder microsoft/speecht5_hifigan`.

Not run to its end yet.
"""

import jaxformer as jf

ENCODER = jf.models.fast_speech_stack(192, 3, 2, mlp_width=768, dropout=0.1, attention_dropout=0.0)
DECODER = jf.models.fast_speech_stack(192, 3, 2, mlp_width=768, dropout=0.1, attention_dropout=0.0)

experiment = jf.Experiment(
    model=jf.models.FastSpeech2(ENCODER, DECODER, vocab=128, frames=500, predictor_width=192),
    objective=jf.objectives.ParallelSpeech(),
    data=jf.data.Data(
        train=jf.data.Tfds("spoken_bible/web-2h-short", split="train"),
        validation=jf.data.Tfds("spoken_bible/web-2h-short", split="validation"),
        task=jf.data.SpokenPhonemes(
            jf.data.SpectrogramField(
                seconds=8,
                log_mel=jf.data.LogMel(80, 16_000, 1024, 256, 80.0, 7600.0, scale="synthesis", floor=1e-3),
            ),
            jf.data.PhonemeField(length=128),
        ),
        batch=8,
        workers=1,
    ),
    tokenizer=jf.tokenizers.Phonemes(),
    optimizer=jf.optimizers.AdamW(schedule=jf.optimizers.Schedule(peak=1e-3, warmup=200, decay="cosine"), b2=0.98),
    steps=3000,
    evaluation=jf.Evaluation(every=500),
    checkpoint=jf.Checkpoint(every=500, best="loss"),
)
