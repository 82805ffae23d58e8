"""Files beside ONNX programs by which transformers, optimum and transformers.js know what they are."""

from pathlib import Path
from typing import Any

import flax.linen as nn

from jaxformer.errors import InputError
from jaxformer.interop.export.onnx_programs import answers_spans
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.families import family_of_model
from jaxformer.interop.huggingface.folders import CONFIG, GENERATION, read_json, write_json
from jaxformer.interop.huggingface.images import IMAGE_MODELS, write_preprocessor
from jaxformer.interop.huggingface.labels import label_fields
from jaxformer.interop.huggingface.models import special_tokens
from jaxformer.interop.huggingface.runs import export_run, generation_fields, read_origin
from jaxformer.interop.huggingface.text.tokenizer_folders import export_tokenizer
from jaxformer.layers.transformer import Transformer
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.models.masked_autoencoder import MaskedAutoencoder
from jaxformer.models.vit import Vit
from jaxformer.objectives.seq2seq_lm import Seq2SeqLM
from jaxformer.predictors.labelled_texts import template_of
from jaxformer.runs.run import Run

LEFT_OUT = ("README.md", "*.safetensors", "*.safetensors.index.json")
"""Files of the Hugging Face folder that do not come with the programs."""


def write_files(run: Run, folder: Path, programs: list[str]) -> str | None:
    """Writes config.json, and the files of the tokenizer, of generation and of images.

    Args:
      run: whose model the programs are.
      folder: where to write; it is there.
      programs: the names of the files that have data of their own beside them.

    Returns:
      Why transformers cannot load the run's parameters, if so. Then the config names the class whose arguments and
      outputs the programs have.

    Raises:
      InputError: the tokenizer cannot be exported, or images of this size cannot.
    """
    origin = read_origin(run.folder)
    problem = None
    try:
        family_of_model(run.model, origin and origin.architecture)
    except InputError as error:
        problem = str(error)
    if problem is None:
        source = folder / "huggingface"
        export_run(run, source, certificate=False)
        _keep(open_folder(source).path, folder)
    else:
        _describe(run, folder)
    config = read_json(folder / CONFIG)
    # transformers.js looks for files of data where the config says so.
    data = {f"{name}.onnx": True for name in programs}
    write_json(folder / CONFIG, config | {"transformers.js_config": {"use_external_data_format": data}})
    return problem


def _keep(source: Path, folder: Path) -> None:
    for path in source.iterdir():
        if not any(path.match(pattern) for pattern in LEFT_OUT):
            path.rename(folder / path.name)
        else:
            path.unlink()
    source.rmdir()


def _describe(run: Run, folder: Path) -> None:
    """A config of the nearest class, and the other files."""
    model, objective = run.model, run.objective
    beginning = getattr(objective, "beginning", False)
    tokens = {} if isinstance(model, IMAGE_MODELS) else special_tokens(model, run.tokenizer, None, beginning)
    if isinstance(objective, Seq2SeqLM):
        tokens["decoder_start_token_id"] = objective.start_id(run.tokenizer)
    config = nearest(model, objective) | tokens
    write_json(folder / CONFIG, config)
    if isinstance(model, IMAGE_MODELS):
        write_preprocessor(folder, model, run.experiment.data.task.image)
    if run.tokenizer is not None:
        template = template_of(model, run.tokenizer)
        export_tokenizer(run.tokenizer, folder, config["model_type"], beginning, template)
    if (decoding := getattr(objective, "decoding", None)) is not None:
        known = {name: value for name, value in tokens.items() if value is not None}
        write_json(folder / GENERATION, known | generation_fields(decoding))


def nearest(model: nn.Module, objective: Any) -> dict[str, Any]:
    """The config of a class that has the arguments and outputs of a model's programs."""
    if isinstance(model, Vit | MaskedAutoencoder):
        return _of_images(model)
    if isinstance(model, EncoderDecoder):
        _, head_dim = model.decoder.attention.sizes(model.decoder.heads, model.decoder.width)
        sizes = {"d_model": model.encoder.width, "num_layers": model.encoder.depth, "num_heads": model.decoder.heads}
        sizes |= {"num_decoder_layers": model.decoder.depth, "d_kv": head_dim, "is_encoder_decoder": True}
        return {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": model.vocab, **sizes}
    backbone = model.backbone if isinstance(model, Classifier) else model
    fields = {**_sizes(backbone.transformer), "vocab_size": model.vocab, "max_position_embeddings": model.max_length}
    encoder = isinstance(backbone, Bert)
    if isinstance(model, Classifier):
        prefix = "Bert" if encoder else "Llama"
        fields |= {} if answers_spans(model, objective) else label_fields(model.labels)
        fields |= {"problem_type": kind} if (kind := getattr(objective, "problem_type", None)) else {}
        architecture = f"{prefix}For{_kind(model, objective)}"
    elif not encoder:
        architecture = "LlamaForCausalLM"
    elif "masked_lm" in model.prediction_heads:
        architecture = "BertForPreTraining" if "next_sentence" in model.prediction_heads else "BertForMaskedLM"
    else:
        architecture = "BertModel"
    return {"model_type": "bert" if encoder else "llama", "architectures": [architecture], **fields}


def _of_images(model: Vit | MaskedAutoencoder) -> dict[str, Any]:
    geometry = {"image_size": model.image, "patch_size": model.patch, "num_channels": model.channels}
    if isinstance(model, MaskedAutoencoder):
        kind, architecture = "vit_mae", "ViTMAEModel" if model.decoder is None else "ViTMAEForPreTraining"
        geometry["mask_ratio"] = model.mask_rate
    else:
        kind, architecture = "vit", "ViTForImageClassification" if model.labels else "ViTModel"
        geometry |= label_fields(model.labels) if model.labels else {}
    return {"model_type": kind, "architectures": [architecture], **_sizes(model.transformer), **geometry}


def _sizes(stack: Transformer) -> dict[str, Any]:
    groups, head_dim = stack.attention.sizes(stack.heads, stack.width)
    heads = {"num_attention_heads": stack.heads, "num_key_value_heads": groups, "head_dim": head_dim}
    return {"hidden_size": stack.width, "num_hidden_layers": stack.depth, **heads}


def _kind(model: Classifier, objective: Any) -> str:
    if answers_spans(model, objective):
        return "QuestionAnswering"
    return "TokenClassification" if model.pooling == "none" else "SequenceClassification"
