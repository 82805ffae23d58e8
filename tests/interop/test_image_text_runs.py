"""Runs of images and texts as folders: with processor, tokenizer and certificate, and back."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from small_clip import SIGMOID, SOFTMAX, TOKENIZER, small_run

from jaxformer.interop.huggingface.runs import export_run, from_pretrained

TEXTS = ["a red dot", "green", "the end of a line"]


@pytest.mark.slow
@pytest.mark.parametrize("model", [SOFTMAX, SIGMOID], ids=["softmax", "sigmoid"])
def test_a_processor_of_the_folder_and_its_model_give_the_scores_of_the_run(model, tmp_path):
    run, out = small_run(model, tmp_path), tmp_path / "out"
    summary = export_run(run, out)
    lines = {line["what"]: line for line in json.loads((out / "parity.json").read_text())["lines"]}
    assert {"logits", "image vectors", "text vectors", "gradients", "tokens", "ranked texts"} <= set(lines)
    assert all(line["passed"] for line in lines.values()) and "comparisons" in summary
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8))
    expected = run.rank(picture, TEXTS)
    kind = "CLIP" if model is SOFTMAX else "Siglip"
    processor = getattr(transformers, f"{kind}Processor").from_pretrained(out)
    network = getattr(transformers, f"{kind}Model").from_pretrained(out).eval()
    padding = True if model is SOFTMAX else "max_length"
    given = processor(text=TEXTS, images=picture, padding=padding, return_tensors="pt")
    if model is SIGMOID:
        given.pop("attention_mask", None)
    with torch.no_grad():
        logits = network(**given).logits_per_image[0]
    shares = logits.softmax(-1) if model is SOFTMAX else logits.sigmoid()
    np.testing.assert_allclose([dict(expected.ranking)[text] for text in TEXTS], shares.numpy(), atol=1e-4)
    again = from_pretrained(out)
    assert again.objective.loss == run.objective.loss
    found = again.rank(picture, TEXTS)
    assert [name for name, _ in found.ranking] == [name for name, _ in expected.ranking]
    np.testing.assert_allclose(again.embed(TEXTS), run.embed(TEXTS), atol=1e-5)
    config = json.loads((out / "config.json").read_text())
    if model is SOFTMAX:
        assert config["text_config"]["eos_token_id"] == TOKENIZER.sep_id
    else:
        assert config["text_config"]["pad_token_id"] == TOKENIZER.pad_id


@pytest.mark.slow
def test_clips_own_tokenizer_is_read_and_its_end_token_is_pooled(tmp_path):
    """Of the vocabulary and merges alone, as of tokenizer.json."""
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    pieces = [*letters, "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}, merges=[("c", "a"), ("ca", "t</w>")]
    )
    sizes = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 3}
    text = {**sizes, "vocab_size": len(pieces), "max_position_embeddings": 9, "eos_token_id": len(pieces) - 1}
    vision = {**sizes, "image_size": 12, "patch_size": 4}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)
    network = transformers.CLIPModel(config).eval()
    network.save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12})
    processor.save_pretrained(tmp_path / "theirs")
    run = from_pretrained(tmp_path / "theirs")
    for name in ("Cat", "a cat dog"):
        given = tokenizer(name, return_tensors="pt")
        tokens = run.encode([name])["tokens"][0]
        assert tokens.tolist() == given.input_ids[0].tolist()
        with torch.no_grad():
            vector = network.get_text_features(**given)
        vector = getattr(vector, "pooler_output", vector)[0].numpy()
        np.testing.assert_allclose(run.embed(name), vector / np.linalg.norm(vector), atol=1e-4)
    assert run.experiment.data.task.image.size == 12 and run.model.vision.mean[0] == pytest.approx(0.48145466)
    export_run(run, tmp_path / "ours", certificate=False)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert again("a cat dog").input_ids == tokenizer("a cat dog").input_ids
