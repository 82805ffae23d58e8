"""Whisper small (Radford et al. 2022): 12 + 12 layers × 768, on LibriSpeech, whose 960 hours of English the paper only
tests on: its own 680,000 hours are not public.

    python train.py configs/whisper_small.py --workdir runs/whisper_small
    python train.py configs/whisper_small.py --init openai/whisper-small --optimizer.schedule.peak 1e-5

Batches of 256 windows of 30 seconds, 1,048,576 updates, a linear warm-up of 2,048 and a linear decay as in the paper
(§2.4 and appendix F), in bfloat16. LibriSpeech is prepared elsewhere by TFDS (`librispeech`), with 16,000 samples per
second; its texts are in upper case.

Not run yet: it needs accelerators and the data set.
"""

import jaxformer as jf

WEIGHTS = "openai/whisper-small"
STACK = jf.models.whisper_stack(768, 12, 12, dtype="bfloat16", remat="full")

experiment = jf.Experiment(
    model=jf.models.Whisper(STACK, STACK, vocab=51_865),
    objective=jf.objectives.SpeechToText(
        transcribing=jf.Transcribing(language="en", timestamps=False),
        scored=64,
        decoding=jf.Decoding(max_new_tokens=224),
    ),
    data=jf.data.Data(
        train=jf.data.Tfds("librispeech", split="train_clean100+train_clean360+train_other500"),
        validation=jf.data.Tfds("librispeech", split="dev_clean"),
        task=jf.data.Transcription(
            jf.data.SoundField(column="speech", array_rate=16_000), jf.data.TranscriptField(language="en")
        ),
        batch=256,
        workers=8,
    ),
    tokenizer=jf.tokenizers.HuggingFaceTokenizer(WEIGHTS),
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(peak=5e-4, warmup=2048), b2=0.98, eps=1e-6, weight_decay=0.1
    ),
    steps=1_048_576,
    evaluation=jf.Evaluation(every=8192),
    checkpoint=jf.Checkpoint(every=8192, best="wer"),
    log=jf.Log(every=128),
)
