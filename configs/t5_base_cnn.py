"""T5 base fine-tuned to summarise the news of CNN and the Daily Mail (Raffel et al. 2020, §2.4 and §3.1.2).

    python train.py configs/t5_base_cnn.py --workdir runs/t5_cnn

The paper fine-tunes for 262,144 steps of 65,536 tokens at a constant rate of 0.001, keeps the best checkpoint, decodes
with four beams and a length penalty of 0.6, and reports ROUGE-1, -2 and -L of 42.05, 20.34 and 39.40 for base. The
first ten thousand steps of it are here. It fits 8 chips of a TPU v5e (v5e:2x4): 3.9 of 16 GiB a device. Not run to its
end yet: no accelerator was at hand.
"""

import jaxformer as jf

SHAPE = {"width": 768, "depth": 12, "heads": 12, "mlp": 3072, "dropout": 0.1, "dtype": "bfloat16", "remat": "dots"}
WEIGHTS = "google-t5/t5-base"

experiment = jf.Experiment(
    model=jf.models.T5(jf.models.t5_stack(**SHAPE), jf.models.t5_stack(**SHAPE, bidirectional=False)),
    objective=jf.objectives.Seq2SeqLM(
        decoding=jf.Decoding(max_new_tokens=128, num_beams=4, length_penalty=0.6),
        scored=500,
        scores=(jf.metrics.Scores(by=("rouge",)),),
    ),
    data=jf.data.Data(
        train=jf.data.Tfds("cnn_dailymail", split="train"),
        validation=jf.data.Tfds("cnn_dailymail", split="validation"),
        task=jf.data.TextToText(512, 128, inputs="article", targets="highlights", prefix="summarize: "),
        batch=128,
        workers=8,
    ),
    tokenizer=jf.tokenizers.HuggingFaceTokenizer(WEIGHTS),
    init=WEIGHTS,
    optimizer=jf.optimizers.Adafactor(
        schedule=jf.optimizers.Schedule(1e-3, decay="constant"), weight_decay=0.0, clip=None
    ),
    steps=10_000,
    evaluation=jf.Evaluation(every=1_000, batches=50),
    checkpoint=jf.Checkpoint(every=1_000, best="rouge_l"),
    log=jf.Log(every=100),
)
