"""A small recognizer with CTC on the World English Bible as read by espeak-ng, from nothing, on two CPU cores.

    python train.py configs/ctc_spoken_bible.py --workdir runs/ctc_spoken_bible
    jaxformer predict runs/ctc_spoken_bible speech.wav
    jaxformer predict runs/ctc_spoken_bible speech.wav --num_beams 16 --language_model bible.arpa

The data set is read aloud when it is prepared (`apt-get install espeak-ng`, `pip install 'jaxformer[audio]'`): ten
hours of verses of up to 100 characters for training, in one voice. Sounds have 8,000 samples per second, half as many
as those of wav2vec 2.0, and a frame is computed every 20 ms. A language model is trained on texts, here on the verses
of the training chapters:

    import jaxformer as jf
    chapters = jf.data.Tfds("bible/web").open()
    jf.Ngrams.train(verse for chapter in chapters for verse in chapter["sentences"]).save("bible.arpa")

Measured after 33 minutes on two cores that other programs used too, on 100 verses of held-out chapters: word error rate
0.201, character error rate 0.051; with the language model and 16 beams, 0.116 and 0.034.
"""

import jaxformer as jf

FRAMING = jf.data.Framing(kernels=(10, 5, 3, 3, 2), strides=(4, 5, 2, 2, 2))

experiment = jf.Experiment(
    model=jf.models.Wav2Vec2Ctc(
        jf.models.speech_stack(144, 4, 4, norm_position="before", dropout=0.0, attention_dropout=0.0),
        widths=(32, 96, 128, 144, 144),
        framing=FRAMING,
        convolution_norm="layer",
        position_taps=32,
        position_groups=8,
        vocab=32,
    ),
    objective=jf.objectives.Ctc(scored=100),
    data=jf.data.Data(
        train=jf.data.Tfds("spoken_bible/web-10h-short", split="train"),
        validation=jf.data.Tfds("spoken_bible/web-10h-short", split="validation"),
        task=jf.data.SpelledSpeech(
            audio=jf.data.WaveformField(seconds=6, rate=8000),
            framing=FRAMING,
            text=jf.data.CharacterField(length=128),
        ),
        batch=8,
        workers=1,
    ),
    tokenizer=jf.tokenizers.Characters(),
    optimizer=jf.optimizers.AdamW(schedule=jf.optimizers.Schedule(peak=1.5e-3, warmup=150, decay="cosine")),
    steps=1900,
    evaluation=jf.Evaluation(every=300, batches=12),
    checkpoint=jf.Checkpoint(every=300, best="wer"),
)
