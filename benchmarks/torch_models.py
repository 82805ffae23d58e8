"""The models of `mfu.py` in PyTorch: each function returns a transformers model and its loss on a batch of `mfu.py`."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

Loss = Callable[[torch.nn.Module], torch.Tensor]


def tensors(batch: Mapping[str, np.ndarray], device: str) -> dict[str, torch.Tensor]:
    """Returns a batch as tensors on a device, integers as int64."""
    found = {name: torch.from_numpy(np.ascontiguousarray(value)).to(device) for name, value in batch.items()}
    return {name: value if value.is_floating_point() else value.long() for name, value in found.items()}


def gpt2(experiment, batch: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, Loss]:
    from transformers import GPT2Config, GPT2LMHeadModel

    model, stack = experiment.model, experiment.model.transformer
    config = GPT2Config(
        vocab_size=model.vocab,
        n_positions=model.max_length,
        n_embd=stack.width,
        n_layer=stack.depth,
        n_head=stack.heads,
        n_inner=stack.mlp.width,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config), _language_model(batch)


def llama(experiment, batch: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, Loss]:
    from transformers import LlamaConfig, LlamaForCausalLM

    model, stack = experiment.model, experiment.model.transformer
    config = LlamaConfig(
        vocab_size=model.vocab,
        max_position_embeddings=model.max_length,
        hidden_size=stack.width,
        intermediate_size=stack.mlp.width,
        num_hidden_layers=stack.depth,
        num_attention_heads=stack.heads,
        num_key_value_heads=stack.attention.kv_heads,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config), _language_model(batch)


def _language_model(batch: Mapping[str, torch.Tensor], **inputs: torch.Tensor) -> Loss:
    """Returns the cross-entropy of the targets. `inputs` are the arguments of the model; by default, the tokens."""
    inputs = inputs or {"input_ids": batch["tokens"]}

    def loss(model):
        logits = model(**inputs, use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())

    return loss


def bert(experiment, batch: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, Loss]:
    from transformers import BertConfig, BertForPreTraining

    model, stack = experiment.model, experiment.model.transformer
    config = BertConfig(
        vocab_size=model.vocab,
        hidden_size=stack.width,
        num_hidden_layers=stack.depth,
        num_attention_heads=stack.heads,
        intermediate_size=stack.mlp.width or 4 * stack.width,
        hidden_dropout_prob=stack.dropout,
        attention_probs_dropout_prob=stack.attention_dropout,
    )
    # transformers computes logits at every position; the others have a label that is not counted.
    labels = torch.full_like(batch["tokens"], -100).scatter(1, batch["masked_positions"], batch["targets"])

    def loss(model):
        arguments = {"token_type_ids": batch["token_types"], "next_sentence_label": batch["next_sentence"]}
        return model(input_ids=batch["tokens"], labels=labels, **arguments).loss

    return BertForPreTraining(config), loss


def vit(experiment, batch: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, Loss]:
    from transformers import ViTConfig, ViTForImageClassification

    model, stack = experiment.model, experiment.model.transformer
    config = ViTConfig(
        hidden_size=stack.width,
        num_hidden_layers=stack.depth,
        num_attention_heads=stack.heads,
        intermediate_size=stack.mlp.width or 4 * stack.width,
        image_size=model.image,
        patch_size=model.patch,
        num_labels=len(model.labels),
    )
    images = batch["images"].permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = batch["labels"][:, 0]
    return ViTForImageClassification(config), lambda model: cross_entropy(model(images).logits, labels)


def t5(experiment, batch: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, Loss]:
    from transformers import T5Config, T5ForConditionalGeneration

    model, stack = experiment.model, experiment.model.encoder
    config = T5Config(
        vocab_size=model.vocab,
        d_model=stack.width,
        d_kv=64,
        d_ff=stack.mlp.width,
        num_layers=stack.depth,
        num_heads=stack.heads,
        dropout_rate=0.0,
    )

    loss = _language_model(batch, input_ids=batch["inputs"], decoder_input_ids=batch["tokens"])
    return T5ForConditionalGeneration(config), loss


def detr(experiment, batch: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, Loss]:
    images = _normalised(batch["images"], experiment.model).permute(0, 3, 1, 2)
    there = batch["box_weights"] > 0
    labels = [
        {"class_labels": labels[some], "boxes": boxes[some]}
        for labels, boxes, some in zip(batch["labels"], batch["boxes"], there, strict=True)
    ]

    def loss(network):
        return network(pixel_values=images, pixel_mask=batch["pixel_mask"], labels=labels).loss

    network = _network(experiment.model, auxiliary_loss=True)
    network.requires_grad_(True)  # transformers freezes the stem and the first stage.
    return network, loss


def segformer(experiment, batch: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, Loss]:
    images = _normalised(batch["images"], experiment.model).permute(0, 3, 1, 2)
    network = _network(experiment.model, drop_path_rate=0.0)
    return network, lambda network: network(images, labels=batch["mask"]).loss


def video_mae(experiment, batch: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, Loss]:
    from jaxformer.layers.tubelets import tube_mask

    model = experiment.model
    clips = _normalised(batch["clips"], model).permute(0, 1, 4, 2, 3)
    hidden = torch.from_numpy(tube_mask(batch["noise"].cpu().numpy(), model.visible, model.times)).to(clips.device)
    return _network(model), lambda network: network(clips, bool_masked_pos=hidden).loss


def dit(experiment, batch: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, Loss]:
    """The class of diffusers. Like our step, its loss draws the noise, the times and which classes are dropped."""
    from diffusers import DiTTransformer2DModel

    from jaxformer.interop.huggingface.diffusion_transformers import describe

    images = _normalised(batch["images"], experiment.model).permute(0, 3, 1, 2)
    classes, is_image = batch["labels"][:, 0], experiment.objective.predicts == "image"
    settings = {name: value for name, value in describe(experiment.model).items() if not name.startswith("_")}

    def loss(network):
        noise, times = torch.randn_like(images), torch.rand(len(images), device=images.device)
        share = times[:, None, None, None]
        noisy = (1 - share) * images + share * noise
        predicted = network(noisy, 1000 * times, classes).sample
        velocity = (noisy - predicted) / share.clamp(min=0.05) if is_image else predicted
        return (velocity - (noise - images)).square().mean()

    return DiTTransformer2DModel(**settings), loss


def whisper(experiment, batch: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, Loss]:
    features = batch["log_mel"].transpose(1, 2).contiguous()
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    loss = _language_model(batch, input_features=features, decoder_input_ids=batch["tokens"])
    return _network(experiment.model, **special), loss


def wav2vec2(experiment, batch: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, Loss]:
    inputs = {"input_values": batch["samples"], "attention_mask": batch["sample_mask"], "labels": batch["targets"]}
    settings = {"apply_spec_augment": False, "ctc_loss_reduction": "mean"}
    return _network(experiment.model, **settings), lambda network: network(**inputs).loss


def _network(model, **changes: Any) -> torch.nn.Module:
    """Returns the transformers model of the same kind, with random weights. `changes` are fields of its config."""
    import transformers

    from jaxformer.interop.huggingface.families import family_of_model

    _, config = family_of_model(model)
    kind: Any = getattr(transformers, config["architectures"][0])
    return kind(kind.config_class.from_dict(config | changes))


def _normalised(pixels: torch.Tensor, model) -> torch.Tensor:
    """Returns pixels as the model's statistics scale them."""
    mean, std = (torch.tensor(numbers, device=pixels.device) for numbers in (model.mean, model.std))
    return (pixels.float() / 255 - mean) / std
