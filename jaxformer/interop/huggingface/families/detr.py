"""DETR family (Carion et al. 2020): conversion from and to Hugging Face transformers."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.data.tasks.base import Task
from jaxformer.data.tasks.boxes import WHOLE, LabelledBoxes
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.bridge import Arrays, Bridge, Source
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, NAMES, Family, sizes_of_sides, stack
from jaxformer.interop.huggingface.families.rows import attention, linear, norm
from jaxformer.interop.huggingface.families.vit import image_field
from jaxformer.interop.huggingface.labels import label_fields, read_labels
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.interop.huggingface.text_forms import replaced
from jaxformer.layers.backbones import ResNet
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.losses.set_prediction import Costs, Targets, set_losses
from jaxformer.models.base import Model
from jaxformer.models.detection import DetectionModel
from jaxformer.models.detr import Detr
from jaxformer.objectives.object_detection import ObjectDetection
from jaxformer.runs.run import Run

STAGES, BLOCKS = 4, 36
"""Maximum numbers of stages, and of blocks per stage, of a ResNet. ResNet-152 has a stage of 36 blocks."""
CONVOLUTION = "d n y x -> y x n d"
TIMM_DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
"""Numbers of blocks per stage of ResNet backbones, keyed by the names that old configs use instead of a description."""
WEIGHTS = {
    "class_cost": 1,
    "bbox_cost": 5,
    "giou_cost": 2,
    "bbox_loss_coefficient": 5,
    "giou_loss_coefficient": 2,
    "eos_coefficient": 0.1,
}
"""Names and defaults of the DETR config fields that contain the weights of the loss and of the matching cost."""
UNUSED = (
    "mask_loss_coefficient",
    "dice_loss_coefficient",
    "init_xavier_std",
    "scale_embedding",
    "max_position_embeddings",
)
"""Names of DETR config fields that are ignored: those of segmentation and of initialisation, and two that the
transformers library never reads.
"""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Variant of the tensor names of DETR. The names depend on the version of the transformers library and on the
    library that defines the backbone.
    """

    backbone: str
    """Prefix of the backbone's tensors."""
    timm: bool = False
    """Whether the tensors of the backbone have the names that the timm library uses."""
    attention: str = "out_proj"
    """Name of the output projection in an attention layer."""
    mlp: str = ""
    """Prefix of the names of the MLP's linear layers within a block."""


STORED = Layout("model.backbone.conv_encoder.model")
LAYOUTS = (
    STORED,
    Layout("model.backbone.conv_encoder.model", timm=True),
    Layout("model.backbone.model", attention="o_proj", mlp="mlp."),
)
"""Supported variants of tensor names: of current checkpoint files, which exports use; of old files, whose backbone is
from the timm library; and of models in memory since version 5 of the transformers library.
"""


def convolution(ours: str, ours_norm: str, theirs: str, theirs_norm: str) -> list[ParamMapping]:
    """Returns the mappings from the parameters of a convolution and its frozen batch norm to tensors of a Hugging Face
    checkpoint. `ours` and `ours_norm` are the paths of their parameters, and `theirs` and `theirs_norm` the prefixes of
    the tensor names.
    """
    return [
        ParamMapping(f"{ours}/kernel", f"{theirs}.weight", CONVOLUTION),
        *norm(ours_norm, theirs_norm),
        ParamMapping(f"{ours_norm}/mean", f"{theirs_norm}.running_mean"),
        ParamMapping(f"{ours_norm}/variance", f"{theirs_norm}.running_var"),
    ]


def block(ours: str, theirs: str, timm: bool) -> list[ParamMapping]:
    """Returns the mappings from the parameters of a ResNet block to tensors of a Hugging Face checkpoint. `ours` is the
    path of the parameters, and `theirs` the prefix of the tensor names. `timm` selects the tensor names of the timm
    library.
    """
    rows = []
    for number in range(3):
        inner = f"{theirs}.layer.{number}"
        names = (f"{theirs}.conv{number + 1}", f"{theirs}.bn{number + 1}")
        names = names if timm else (f"{inner}.convolution", f"{inner}.normalization")
        rows += convolution(f"{ours}/conv{number}", f"{ours}/norm{number}", *names)
    shortcut = ("downsample.0", "downsample.1") if timm else ("shortcut.convolution", "shortcut.normalization")
    rows += convolution(f"{ours}/shortcut", f"{ours}/shortcut_norm", *(f"{theirs}.{name}" for name in shortcut))
    return rows


def backbone(layout: Layout) -> list[ParamMapping]:
    """Returns the mappings from the parameters of a ResNet to tensors of a Hugging Face checkpoint. Includes mappings
    for the maximum numbers of stages and blocks. Those of blocks that a model does not have are not used.
    """
    theirs = layout.backbone
    stem = f"{theirs}.embedder.embedder"
    names = (f"{theirs}.conv1", f"{theirs}.bn1")
    names = names if layout.timm else (f"{stem}.convolution", f"{stem}.normalization")
    rows = convolution("backbone/stem", "backbone/stem_norm", *names)
    for stage in range(STAGES):
        for number in range(BLOCKS):
            name = f"encoder.stages.{stage}.layers.{number}"
            name = f"layer{stage + 1}.{number}" if layout.timm else name
            rows += block(f"backbone/stage{stage}_block{number}", f"{theirs}.{name}", layout.timm)
    return rows


def projections(ours: str, theirs: str, layout: Layout) -> list[ParamMapping]:
    """Returns the mappings from the parameters of the query, key, value and output projections in an attention layer to
    tensors of a Hugging Face checkpoint. `ours` is the path of the parameters, and `theirs` the prefix of the tensor
    names.
    """
    names = (f"{theirs}.{part}" for part in ("q_proj", "k_proj", "v_proj", layout.attention))
    return attention(ours, *names)


def blocks(ours: str, theirs: str, layout: Layout) -> list[ParamMapping]:
    """Returns the mappings from the parameters of the Transformer blocks in the encoder or decoder to tensors of a
    Hugging Face checkpoint. `ours` is "encoder" or "decoder", and `theirs` the prefix of the tensor names.
    """
    layer, block = f"{theirs}.layers.{{l}}", f"{ours}/blocks"
    rows = [
        *projections(f"{block}/attention", f"{layer}.self_attn", layout),
        *norm(f"{block}/attention_norm", f"{layer}.self_attn_layer_norm"),
        *linear(f"{block}/mlp/up", f"{layer}.{layout.mlp}fc1"),
        *linear(f"{block}/mlp/down", f"{layer}.{layout.mlp}fc2"),
        *norm(f"{block}/mlp_norm", f"{layer}.final_layer_norm"),
    ]
    if ours == "decoder":
        rows += projections(f"{block}/cross_attention", f"{layer}.encoder_attn", layout)
        rows += norm(f"{block}/cross_attention_norm", f"{layer}.encoder_attn_layer_norm")
    return rows


def table(layout: Layout) -> tuple[ParamMapping, ...]:
    """Returns the mappings from the parameters of a DETR model to tensors of a Hugging Face checkpoint. `layout` is the
    variant of the tensor names.
    """
    heads = [row for number in range(3) for row in linear(f"box/layer{number}", f"bbox_predictor.layers.{number}")]
    return (
        *backbone(layout),
        *linear("input", "model.input_projection", "d n 1 1 -> n d"),
        ParamMapping("queries", "model.query_position_embeddings.weight"),
        *blocks("encoder", "model.encoder", layout),
        *blocks("decoder", "model.decoder", layout),
        *norm("decoder_norm", "model.decoder.layernorm"),
        *linear("head", "class_labels_classifier"),
        *heads,
    )


COUNTS = {
    f"{STORED.backbone}.{name}.num_batches_tracked": "counts training steps, and is not used"
    for name in ("bn1", "layer{l}.{l}.bn{l}", "layer{l}.{l}.downsample.{l}")
}
TABLE = Table(table(LAYOUTS[0]), known=COUNTS, others=tuple(Table(table(layout), COUNTS) for layout in LAYOUTS[1:]))


def build(reader: ConfigReader, names: Collection[str]) -> Detr:
    """Builds the model for a DetrConfig."""
    del names
    # With auxiliary losses, transformers also normalizes the input of the next layer, unlike the paper.
    reader.must("auxiliary_loss", False)
    reader.must("position_embedding_type", "sine")
    reader.must("dilation", False)
    for name in UNUSED:
        reader.get(name)
    for name, default in WEIGHTS.items():
        reader.number(name, default)
    for name in ("encoder_layerdrop", "decoder_layerdrop", "activation_dropout"):
        reader.only_training(name)
    for name, field in (("hidden_size", "d_model"), ("num_hidden_layers", "encoder_layers")):
        reader.must(name, reader.get(field))
    channels = reader.integer("num_channels", 3)
    pixels: dict[str, Any] = {"mean": (0.5,), "std": (0.5,)} if channels != 3 else {}
    encoder, decoder = (_stack(reader, part) for part in ("encoder", "decoder"))
    try:
        return Detr(
            backbone=_resnet(reader, channels),
            encoder=encoder,
            decoder=decoder,
            labels=read_labels(reader),
            queries=reader.integer("num_queries", 100),
            channels=channels,
            **pixels,
        )
    except InputError as error:
        raise InputError(f"{reader.where}: {error}") from error


def _stack(reader: ConfigReader, part: str) -> Transformer:
    return stack(
        reader,
        width=reader.integer("d_model", 256),
        depth=reader.integer(f"{part}_layers", 6),
        heads=reader.integer(f"{part}_attention_heads", 8),
        mlp=Mlp(reader.integer(f"{part}_ffn_dim", 2048), reader.choice("activation_function", ACTIVATIONS, "relu")),
        norm=LayerNorm(1e-5),
        norm_position="after",
        dropout=reader.rate("dropout", 0.1),
        attention_dropout=reader.rate("attention_dropout"),
    )


def _resnet(reader: ConfigReader, channels: int) -> ResNet:
    """Builds the ResNet backbone. A DETR config contains either a nested config of the backbone, or the name of a
    ResNet in the timm library.
    """
    nested = dict(reader.get("backbone_config", {}))
    by_timm = reader.get("use_timm_backbone", not nested) or nested.get("model_type") == "timm_backbone"
    named = nested.get("backbone") or reader.get("backbone") or "resnet50"
    for name in ("backbone", "use_pretrained_backbone", "backbone_kwargs"):
        reader.get(name)
    if by_timm:
        if named not in TIMM_DEPTHS:
            raise reader.error("backbone", named, f"one of {', '.join(TIMM_DEPTHS)}")
        return ResNet(TIMM_DEPTHS[named])
    inner = ConfigReader(nested, f"{reader.where}: backbone_config")
    inner.must("model_type", "resnet")
    inner.must("hidden_act", "relu")
    inner.must("num_channels", channels, 3)
    inner.must("downsample_in_bottleneck", False)
    inner.must("downsample_in_first_stage", False)
    depths = tuple(inner.get("depths", [3, 4, 6, 3]))
    for name in ("out_features", "out_indices", "stage_names", "_out_features", "_out_indices"):
        inner.get(name)
    if list(nested.get("out_features") or [f"stage{len(depths)}"])[-1:] != [f"stage{len(depths)}"]:
        raise inner.error("out_features", nested["out_features"], f"the last stage, stage{len(depths)}")
    widths, stem = tuple(inner.get("hidden_sizes", [256, 512, 1024, 2048])), inner.integer("embedding_size", 64)
    bottleneck = inner.choice("layer_type", {"bottleneck": True, "basic": False}, "bottleneck")
    inner.finish()
    return ResNet(depths, widths, stem, bottleneck)


def describe(model: Detr) -> dict[str, Any]:
    """Converts the model to a DetrConfig."""
    if not isinstance(model.backbone, ResNet):
        kind = type(model.backbone).__name__
        raise InputError(f"model.backbone={kind}: transformers has DETR only with a ResNet")
    encoder, backbone = model.encoder, model.backbone
    return {
        "architectures": ["DetrForObjectDetection"],
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone": None,
        "backbone_config": {
            "model_type": "resnet",
            "num_channels": model.channels,
            "embedding_size": backbone.stem,
            "hidden_sizes": list(backbone.widths),
            "depths": list(backbone.depths),
            "layer_type": "bottleneck" if backbone.bottleneck else "basic",
            "hidden_act": "relu",
            "out_features": [f"stage{len(backbone.depths)}"],
        },
        "num_channels": model.channels,
        "num_queries": model.queries,
        "d_model": encoder.width,
        **sizes_of_sides(model),
        "activation_function": NAMES[encoder.mlp.activation],
        "dropout": encoder.dropout,
        "attention_dropout": encoder.attention_dropout,
        "auxiliary_loss": False,
        "position_embedding_type": "sine",
        "dilation": False,
        **label_fields(model.labels),
    }


class DetectionBridge(Bridge):
    """Chooses the training objective and the data task of an imported object detection model, and computes the outputs,
    labels and loss of the corresponding class of the transformers library.
    """

    def objective(self, source: Source, model: DetectionModel) -> ObjectDetection:
        """Returns the object detection objective, with the loss weights in the config.json of the imported folder."""
        config = source.folder.config if source.folder is not None else {}
        weights = {name: float(config.get(name) or default) for name, default in WEIGHTS.items()}
        return ObjectDetection(
            l1_weight=weights["bbox_loss_coefficient"],
            giou_weight=weights["giou_loss_coefficient"],
            no_object_weight=weights["eos_coefficient"],
            costs=Costs(weights["class_cost"], weights["bbox_cost"], weights["giou_cost"]),
            layer_losses=False,
        )

    def task(self, source: Source, model: DetectionModel, objective: Any) -> Task:
        """Returns a task of images with labelled boxes. The images are preprocessed as the imported folder
        specifies.
        """
        image = image_field(source, model)
        image = image if image.fit in WHOLE else dataclasses.replace(image, fit="pad", crop=1.0)
        return LabelledBoxes(image, labels=model.labels, max_boxes=model.queries)

    def special_tokens(self, model: Model, tokens: Mapping[str, int | None]) -> dict[str, int | None]:
        """Returns an empty dict, because images have no special tokens."""
        return {}

    def to_exportable_form(self, run: Run) -> Run:
        """Returns an equivalent run whose parameters have the layout of Hugging Face checkpoints: of a `Detr` with
        several groups of queries, only the first group is exported, which makes the predictions.
        """
        if getattr(run.model, "groups", 1) == 1:
            return run
        model = dataclasses.replace(run.model, groups=1)
        params = dict(run.params) | {"queries": run.params["queries"][: model.queries]}
        return replaced(run, model, params, run.tokenizer)

    def outputs(self, model: Model, output: Any, objective: Any = None) -> dict[str, jax.Array]:
        """Returns the class logits, the boxes and the hidden vectors, keyed by their names in the transformers
        library.
        """
        return {"logits": output.logits, "pred_boxes": output.boxes, "last_hidden_state": output.hidden}

    def labels(self, model: DetectionModel, rows: Arrays) -> dict[str, Any]:
        """Returns random objects (boxes and class ids per image), from which the corresponding class of the
        transformers library computes its loss in parity checks.
        """
        targets = random_targets(len(rows["images"]), len(model.labels))
        found = []
        for boxes, labels, weights in zip(targets.boxes, targets.labels, targets.weights, strict=True):
            there = weights > 0
            found.append({"class_labels": np.asarray(labels[there]), "boxes": np.asarray(boxes[there])})
        return {"labels": found}

    def loss(self, outputs: Mapping[str, jax.Array], rows: Mapping[str, jax.Array]) -> jax.Array:
        """Computes the loss of the last decoder layer with the default weights, for the same random objects as in
        `labels`.
        """
        logits, boxes = outputs["logits"], outputs["pred_boxes"]
        targets = random_targets(len(logits), logits.shape[-1] - 1)
        means = set_losses(logits, boxes, targets, Costs(), 0.1)
        weights = ObjectDetection(average_precision=False, layer_losses=False).loss_weights
        return jnp.stack([weight * means[name].value for name, weight in weights.items()]).sum()

    def config_for_onnx(self, model: DetectionModel, objective: Any) -> dict[str, Any]:
        """Returns the config of the DETR class of the transformers library, whose arguments and outputs match those of
        the model.
        """
        sizes = {"num_queries": model.queries, "num_channels": model.channels}
        return {
            "model_type": "detr",
            "architectures": ["DetrForObjectDetection"],
            **sizes,
            **label_fields(model.labels),
        }


def random_targets(images: int, labels: int) -> Targets:
    """Returns random boxes with class ids for parity checks: up to three per image, and none in the second image.
    `images` and `labels` are the numbers of images and of classes.
    """
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0.2, 0.4, (images, 3, 4)).astype(np.float32)
    numbers = rng.integers(0, labels, (images, 3)).astype(np.int32)
    counts = np.array([3, 0, 2, 1])[np.arange(images) % 4]
    weights = (np.arange(3) < counts[:, None]).astype(np.float32)
    return Targets(*map(jnp.asarray, (boxes, numbers, weights, np.ones(images, np.float32))))


BRIDGE = DetectionBridge()

FAMILY = Family(
    model_type="detr",
    architectures=("DetrForObjectDetection",),
    module=Detr,
    build=build,
    describe=describe,
    table=TABLE,
    bridge=BRIDGE,
)
