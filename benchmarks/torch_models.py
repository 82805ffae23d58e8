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


def _language_model(batch: Mapping[str, torch.Tensor]) -> Loss:
    def loss(model):
        logits = model(input_ids=batch["tokens"], use_cache=False).logits
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

    def loss(model):
        arguments: dict[str, Any] = {"decoder_input_ids": batch["tokens"], "use_cache": False}
        logits = model(input_ids=batch["inputs"], **arguments).logits
        return cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())

    return T5ForConditionalGeneration(config), loss


def detr(experiment, batch: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, Loss]:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    model, backbone = experiment.model, experiment.model.backbone
    stacks = {
        f"{side}_{name}": value
        for side, stack in model.stacks().items()
        for name, value in {"layers": stack.depth, "attention_heads": stack.heads, "ffn_dim": stack.mlp.width}.items()
    }
    resnet = ResNetConfig(
        embedding_size=backbone.stem,
        hidden_sizes=list(backbone.widths),
        depths=list(backbone.depths),
        layer_type="bottleneck" if backbone.bottleneck else "basic",
        out_features=[f"stage{len(backbone.depths)}"],
    )
    config = DetrConfig(
        use_timm_backbone=False,
        backbone_config=resnet,
        d_model=model.encoder.width,
        num_queries=model.queries,
        num_labels=len(model.labels),
        dropout=0.0,
        auxiliary_loss=True,
        **stacks,
    )
    images = _normalised(batch["images"], model).permute(0, 3, 1, 2)
    there = batch["box_weights"] > 0
    labels = [
        {"class_labels": labels[some], "boxes": boxes[some]}
        for labels, boxes, some in zip(batch["labels"], batch["boxes"], there, strict=True)
    ]

    def loss(network):
        return network(pixel_values=images, pixel_mask=batch["pixel_mask"], labels=labels).loss

    network = DetrForObjectDetection(config)
    network.requires_grad_(True)  # transformers freezes the stem and the first stage.
    return network, loss


def segformer(experiment, batch: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, Loss]:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    model = experiment.model
    stacks = list(model.stacks().values())
    config = SegformerConfig(
        hidden_sizes=[stack.width for stack in stacks],
        depths=[stack.depth for stack in stacks],
        num_attention_heads=[stack.heads for stack in stacks],
        sr_ratios=[stack.attention.reduction for stack in stacks],
        decoder_hidden_size=model.decoder_width,
        image_size=model.image,
        num_labels=len(model.labels),
        classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
    )
    images = _normalised(batch["images"], model).permute(0, 3, 1, 2)
    network = SegformerForSemanticSegmentation(config)
    return network, lambda network: network(images, labels=batch["mask"]).loss


def video_mae(experiment, batch: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, Loss]:
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    from jaxformer.layers.tubelets import hidden_tubes

    model, stack, decoder = experiment.model, experiment.model.transformer, experiment.model.decoder
    config = VideoMAEConfig(
        image_size=model.image,
        patch_size=model.patch,
        num_frames=model.frames,
        tubelet_size=model.tubelet,
        hidden_size=stack.width,
        num_hidden_layers=stack.depth,
        num_attention_heads=stack.heads,
        intermediate_size=stack.mlp.width or 4 * stack.width,
        decoder_hidden_size=decoder.width,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.heads,
        decoder_intermediate_size=decoder.mlp.width or 4 * decoder.width,
    )
    clips = _normalised(batch["clips"], model).permute(0, 1, 4, 2, 3)
    hidden = torch.from_numpy(hidden_tubes(batch["noise"].cpu().numpy(), model.visible, model.times)).to(clips.device)
    return VideoMAEForPreTraining(config), lambda network: network(clips, bool_masked_pos=hidden).loss


def whisper(experiment, batch: Mapping[str, torch.Tensor]) -> tuple[torch.nn.Module, Loss]:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    model = experiment.model
    stacks = {
        f"{side}_{name}": value
        for side, stack in model.stacks().items()
        for name, value in {
            "layers": stack.depth,
            "attention_heads": stack.heads,
            "ffn_dim": stack.mlp.width or 4 * stack.width,
        }.items()
    }
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    config = WhisperConfig(vocab_size=model.vocab, d_model=model.encoder.width, **stacks, **special)
    features = batch["log_mel"].transpose(1, 2).contiguous()

    def loss(network):
        logits = network(input_features=features, decoder_input_ids=batch["tokens"], use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())

    return WhisperForConditionalGeneration(config), loss


def _normalised(pixels: torch.Tensor, model) -> torch.Tensor:
    """Returns pixels as the model's statistics scale them."""
    mean, std = (torch.tensor(numbers, device=pixels.device) for numbers in (model.mean, model.std))
    return (pixels.float() / 255 - mean) / std
