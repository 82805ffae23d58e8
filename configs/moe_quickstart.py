"""The model of gpt_quickstart.py with eight experts in each block and two for each token: a small Mixtral.

python train.py configs/moe_quickstart.py --workdir runs/moe
jaxformer predict runs/moe "And it happened in those days"

Two experts together are as wide as the dense model's MLP, so that a token takes as many operations in both. No run to
its end has been recorded.
"""

import jaxformer as jf

experiment = jf.Experiment(
    model=jf.models.Gpt(
        jf.layers.Transformer(
            width=128,
            depth=4,
            heads=4,
            attention=jf.layers.Attention(bias=False),
            mlp=jf.layers.ExpertMlp(experts=8, top_k=2, width=176),
            norm=jf.layers.RMSNorm(),
            position_embedding=jf.layers.Rotary(),
            dropout=0.0,
            attention_dropout=0.0,
        ),
        vocab=4096,
        max_length=256,
    ),
    objective=jf.objectives.CausalLM(decoding=jf.Decoding(max_new_tokens=100, temperature=0.8, top_p=0.95)),
    data=jf.data.Data(
        train=jf.data.Tfds("bible/web", split="train"),
        validation=jf.data.Tfds("bible/web", split="validation"),
        task=jf.data.NextToken(length=128),
        batch=16,
        pack=True,
    ),
    tokenizer=jf.tokenizers.SentencePiece(vocab=4096),
    optimizer=jf.optimizers.Muon(schedule=jf.optimizers.Schedule(peak=4e-3, warmup=100, decay="cosine")),
    steps=1000,
    evaluation=jf.Evaluation(every=500),
    checkpoint=jf.Checkpoint(every=500),
    log=jf.Log(every=50),
)
