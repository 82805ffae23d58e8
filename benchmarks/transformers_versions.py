"""Whether several generations of transformers compute the same from the folders that `jaxformer export` writes.

    python benchmarks/transformers_versions.py                        # 4.57, 5.0 and the newest
    python benchmarks/transformers_versions.py --versions '4.57.*'    # one of them

Exports a small random model of every architecture, loads each folder under each version, in a virtual environment of
its own, and compares logits, the tokens of hard strings and greedy tokens with ours. A row of the table is a folder.
The ratio is the tolerance over the largest difference of logits, relative to the largest logit; a folder that does not
load, or tokens that differ, make it 0.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

NEWEST = "newest"
VERSIONS = ("4.57.*", "5.0.*", NEWEST)
TOLERANCE = 2e-5
NEW_TOKENS = 12
QUESTIONS, ANSWERS, RESULTS = "questions.json", "answers.json", "results.json"
VOCAB, POSITIONS = 320, 64
"""Vocabulary of all models; the tokenizers have 300 pieces."""

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "vocab_size": VOCAB,
}
DECODER = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32, "rope_theta": 1e4}
GEMMA = DECODER | {"num_hidden_layers": 3, "sliding_window": 6, "query_pre_attn_scalar": 12}
GEMMA |= {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
LINEAR = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}
T5 = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
T5 |= {"decoder_start_token_id": 0}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
BART = {"vocab_size": VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48}
BART |= {"decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
BART |= {"max_position_embeddings": POSITIONS}
MARIAN = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
IMAGES = {name: SIZES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
IMAGES |= {"image_size": 16, "patch_size": 4}
LABELS = {"num_labels": 3}
GPT2 = {
    "bos_token_id": None,
    "eos_token_id": None,
    "vocab_size": VOCAB,
    "n_positions": POSITIONS,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
}
DISTILBERT = {"vocab_size": VOCAB, "max_position_embeddings": POSITIONS, "dim": 32, "n_layers": 2, "n_heads": 4}
DISTILBERT |= {"hidden_dim": 48}
ROBERTA = SIZES | {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1}

MODERN_BERT = SIZES | {"num_hidden_layers": 4, "local_attention": 8, "pad_token_id": 0, "bos_token_id": 1}
MODERN_BERT |= {"eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}

MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None, "tie_word_embeddings": False}
TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CLIP = {"text_config": TOWER | {"vocab_size": VOCAB, "max_position_embeddings": 32, "eos_token_id": 199}}
CLIP |= {"vision_config": TOWER | {"image_size": 16, "patch_size": 4}}

QWEN3_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}

MODELS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "bert": ("BertForPreTraining", "word_piece", SIZES),
    "bert classes": ("BertForSequenceClassification", "word_piece", SIZES | LABELS),
    "roberta": ("RobertaForMaskedLM", None, ROBERTA),
    "distilbert": ("DistilBertForMaskedLM", "word_piece", DISTILBERT),
    "modernbert": ("ModernBertForMaskedLM", "word_piece", MODERN_BERT),
    "modernbert classes": ("ModernBertForSequenceClassification", "word_piece", MODERN_BERT | LABELS),
    "gpt2": ("GPT2LMHeadModel", "byte_level", GPT2),
    "gpt2 classes": ("GPT2ForSequenceClassification", "byte_level", GPT2 | LABELS | {"pad_token_id": 0}),
    "llama": ("LlamaForCausalLM", "sentence_piece", DECODER | {"tie_word_embeddings": False}),
    "llama long": ("LlamaForCausalLM", "sentence_piece", DECODER | {"rope_parameters": LLAMA3}),
    "mistral": ("MistralForCausalLM", "sentence_piece", DECODER | {"sliding_window": None}),
    "qwen3": ("Qwen3ForCausalLM", "byte_level", DECODER | {"tie_word_embeddings": True}),
    "mixtral": ("MixtralForCausalLM", "sentence_piece", DECODER | MIXTRAL),
    "qwen3 moe": ("Qwen3MoeForCausalLM", "byte_level", DECODER | QWEN3_MOE),
    "gemma3": ("Gemma3ForCausalLM", "sentence_piece", GEMMA),
    "gemma3 long": ("Gemma3ForCausalLM", "sentence_piece", GEMMA | {"rope_parameters": LINEAR}),
    "t5": ("T5ForConditionalGeneration", "sentence_piece", T5),
    "t5 v1.1": ("T5ForConditionalGeneration", "sentence_piece", T5 | GATED),
    "mt5": ("MT5ForConditionalGeneration", "sentence_piece", T5 | GATED),
    "marian": ("MarianMTModel", "sentence_piece", BART | MARIAN),
    "bart": ("BartForConditionalGeneration", None, BART),
    "vit": ("ViTForImageClassification", None, IMAGES | LABELS | {"intermediate_size": 48}),
    "dinov2": ("Dinov2Model", None, IMAGES),
    "clip": ("CLIPModel", None, CLIP | {"projection_dim": 24}),
    "siglip": ("SiglipModel", None, CLIP),
}
"""By the folder's name: transformers' class, the kind of tokenizer, and the fields of the config."""


def export(home: Path) -> None:
    """Writes the folder of each model, with inputs for it, and what we compute."""
    import jax
    import numpy as np
    import torch
    import transformers

    from jaxformer.data.tokenizers import ByteLevelBpe, SentencePiece, WordPiece
    from jaxformer.interop.huggingface.adapters import open_folder
    from jaxformer.interop.huggingface.models import ExportPlan, export_hf, load
    from jaxformer.interop.parity import compare
    from jaxformer.interop.parity.batches import comparison_batches
    from jaxformer.interop.parity.hard_strings import HARD_STRINGS

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    recipes = {"word_piece": WordPiece(300), "byte_level": ByteLevelBpe(300), "sentence_piece": SentencePiece(300)}
    texts = [{"text": part} for part in (Path(__file__).parents[1] / "README.md").read_text("utf-8").split("\n\n")]
    tokenizers = {
        name: recipe.build(lambda: texts, str(home / "tokenizers" / name)) for name, recipe in recipes.items()
    }
    for name, (architecture, kind, fields) in MODELS.items():
        torch.manual_seed(0)
        network = getattr(transformers, architecture)._from_config(config_of(architecture, fields))
        for parameter in network.parameters():
            parameter.data.normal_(0, 0.2)
        network.save_pretrained(home / "imported" / name)
        imported = load(open_folder(home / "imported" / name))
        model, params = imported.model, imported.params
        tokenizer = tokenizers.get(kind)
        folder = home / "folders" / name
        export_hf(model, params, tokenizer, folder, ExportPlan(origin=imported.origin))
        ours = compare.JaxModel(model, params, "float32")
        rows = next(iter(comparison_batches(model, [np.arange(5, 200, dtype=np.int32)], pad=0)))
        compared = "logits_per_image" if "vision_config" in fields else "logits"
        compared = "last_hidden_state" if architecture == "Dinov2Model" else compared
        (output,) = ours(rows, [compared]).outputs.values()
        given = {name: array.tolist() for name, array in compare.torch_arguments(model, rows).items()}
        questions, answers = {"inputs": given, "texts": []}, {"output": output.ravel().tolist()}
        if model.is_generative:
            start = network.config.decoder_start_token_id if network.config.is_encoder_decoder else None
            questions |= {"prompt": given["input_ids"][0][:8], "start": start}
            (written,) = ours.generate([np.array(questions["prompt"], np.int32)], NEW_TOKENS, start)
            answers["written"] = written.tolist()
        if tokenizer is not None:
            questions["texts"] = list(HARD_STRINGS)
            answers["tokens"] = [tokenizer.encode(text).tolist() for text in HARD_STRINGS]
        (folder / QUESTIONS).write_text(json.dumps(questions), encoding="utf-8")
        (folder / ANSWERS).write_text(json.dumps(answers), encoding="utf-8")
        jax.clear_caches()


def config_of(architecture: str, fields: dict[str, Any]) -> Any:
    """A config of transformers, with eager attention."""
    import transformers

    kind = getattr(transformers, architecture).config_class
    return kind(**fields, attn_implementation="eager")


def read(home: Path) -> None:
    """The outputs of this process's transformers for each folder; needs no more than transformers and torch."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    results = {"transformers": transformers.__version__, "folders": {}}
    for folder in sorted((home / "folders").iterdir()):
        try:
            results["folders"][folder.name] = computed(folder)
        except Exception as error:  # Whatever this version raises is the result.
            results["folders"][folder.name] = {"error": f"{type(error).__name__}: {error}"}
    (home / RESULTS).write_text(json.dumps(results), encoding="utf-8")


def computed(folder: Path) -> dict[str, Any]:
    """The first output, greedy tokens and the tokens of texts."""
    import torch
    import transformers

    questions = json.loads((folder / QUESTIONS).read_text("utf-8"))
    (architecture,) = json.loads((folder / "config.json").read_text("utf-8"))["architectures"]
    network = getattr(transformers, architecture).from_pretrained(folder, attn_implementation="eager").eval()
    inputs, result = {name: torch.tensor(value) for name, value in questions["inputs"].items()}, {}
    with torch.no_grad():
        result["output"] = network(**inputs)[0].flatten().tolist()
        if "prompt" in questions:
            ids = torch.tensor([questions["prompt"]])
            settings = transformers.GenerationConfig(
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=0,
                decoder_start_token_id=questions["start"],
            )
            network.generation_config = settings
            written = network.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            result["written"] = written[0, -NEW_TOKENS:].tolist()
    if questions["texts"]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        result["tokens"] = [tokenizer(text, add_special_tokens=False).input_ids for text in questions["texts"]]
    return result


def compared(expected: dict[str, Any], result: dict[str, Any]) -> tuple[float, str]:
    """How far the output is from ours, relative to its largest number (or 1), and a note; infinite for an error."""
    if "error" in result:
        return float("inf"), result["error"].splitlines()[0][:150]
    pairs = list(zip(result["output"], expected["output"], strict=True))
    difference = max(abs(one - other) for one, other in pairs) / max(1.0, *(abs(other) for _, other in pairs))
    differing = [name for name in ("written", "tokens") if result.get(name) != expected.get(name)]
    return (float("inf"), f"other {' and '.join(differing)}") if differing else (difference, "")


def in_environment(version: str, home: Path, folder: Path) -> dict[str, Any]:
    """The outputs of transformers of a version, in a new virtual environment in `folder`."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    wanted = "transformers" if version == NEWEST else f"transformers=={version}"
    packages = ["torch==2.13.0", wanted, "sentencepiece", "protobuf", "pillow"]
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    subprocess.run([python, __file__, "--read", str(home)], check=True)
    return json.loads((home / RESULTS).read_text("utf-8"))


def main() -> int:
    """Prints the table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--versions", nargs="+", default=VERSIONS, help=f"such as 4.57.*, or {NEWEST}")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read(options.read)
        return 0
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        export(home)
        for number, version in enumerate(options.versions):
            results = in_environment(version, home, home / f"environment{number}")
            print(f"transformers {results['transformers']}")
            for name, result in results["folders"].items():
                expected = json.loads((home / "folders" / name / ANSWERS).read_text("utf-8"))
                difference, note = compared(expected, result)
                worst = max(worst, difference)
                print(f"  {name:16} {difference:8.1e}  {note}".rstrip())
    ratio = TOLERANCE / worst if worst else float(len(MODELS))
    met = ratio >= 1
    print(json.dumps({"benchmark": "transformers_versions", "ratio": round(ratio, 2), "goal": 1, "met": met}))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
