"""BERT family (Devlin et al. 2019): conversion from and to Hugging Face transformers."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.config import Objective
from jaxformer.data.tasks.base import Task
from jaxformer.data.tasks.masked_lm import MaskedSentencePairs
from jaxformer.interop.huggingface import sentence_encoders
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.bridge import Bridge, Source, mean_cross_entropy, text_length, text_sizes
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, MARKS, NAMES, Family, stack
from jaxformer.interop.huggingface.families.rows import attention, linear, norm
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.models.bert import Bert, Head
from jaxformer.objectives.masked_lm import MaskedLM

EMBEDDINGS, LAYER, HEAD = "bert.embeddings", "bert.encoder.layer.{l}", "cls.predictions"

TABLE = Table(
    (
        ParamMapping("embeddings/token", f"{EMBEDDINGS}.word_embeddings.weight", copies=(f"{HEAD}.decoder.weight",)),
        ParamMapping("embeddings/position", f"{EMBEDDINGS}.position_embeddings.weight"),
        ParamMapping("embeddings/token_type", f"{EMBEDDINGS}.token_type_embeddings.weight"),
        *norm("embeddings/norm", f"{EMBEDDINGS}.LayerNorm"),
        *attention(
            "transformer/blocks/attention",
            f"{LAYER}.attention.self.query",
            f"{LAYER}.attention.self.key",
            f"{LAYER}.attention.self.value",
            f"{LAYER}.attention.output.dense",
        ),
        *norm("transformer/blocks/attention_norm", f"{LAYER}.attention.output.LayerNorm"),
        *linear("transformer/blocks/mlp/up", f"{LAYER}.intermediate.dense"),
        *linear("transformer/blocks/mlp/down", f"{LAYER}.output.dense"),
        *norm("transformer/blocks/mlp_norm", f"{LAYER}.output.LayerNorm"),
        *linear("pooler", "bert.pooler.dense"),
        *linear("masked_lm/dense", f"{HEAD}.transform.dense"),
        *norm("masked_lm/norm", f"{HEAD}.transform.LayerNorm"),
        ParamMapping("masked_lm/bias", f"{HEAD}.bias", copies=(f"{HEAD}.decoder.bias",)),
        *linear("next_sentence", "cls.seq_relationship"),
    ),
    known={f"{EMBEDDINGS}.position_ids": "0, 1, 2, ..."},
    prefix="bert.",
)


def build(reader: ConfigReader, names: Collection[str]) -> Bert:
    """Builds the model for a BERT config. `names` are the names of the stored tensors, which determine the heads of the
    model.
    """
    reader.must("position_embedding_type", "absolute")
    reader.must("tie_word_embeddings", True)
    return Bert(
        encoder(reader),
        vocab=reader.integer("vocab_size"),
        max_length=reader.integer("max_position_embeddings"),
        token_types=reader.integer("type_vocab_size", 2),
        prediction_heads=heads(names, pooler="pooler.dense.weight", masked_lm=f"{HEAD}.transform.dense.weight"),
    )


def encoder(reader: ConfigReader):
    """Builds the stack of Transformer blocks for a BERT or RoBERTa config."""
    return stack(
        reader,
        width=reader.integer("hidden_size"),
        depth=reader.integer("num_hidden_layers"),
        heads=reader.integer("num_attention_heads"),
        mlp=Mlp(reader.integer("intermediate_size"), reader.choice("hidden_act", ACTIVATIONS, "gelu")),
        norm=LayerNorm(reader.number("layer_norm_eps", 1e-12)),
        norm_position="after",
        dropout=reader.rate("hidden_dropout_prob", 0.1),
        attention_dropout=reader.rate("attention_probs_dropout_prob", 0.1),
    )


def heads(names: Collection[str], pooler: str, masked_lm: str) -> tuple[Head, ...]:
    """Returns the names of the heads whose tensors are stored.

    Args:
      names: Names of the stored tensors.
      pooler: Name of a tensor of the pooler.
      masked_lm: Name of a tensor of the masked-LM head.
    """
    found: dict[Head, bool] = {
        "masked_lm": masked_lm in names,
        "pooler": any(name.endswith(pooler) for name in names),
        "next_sentence": "cls.seq_relationship.weight" in names,
    }
    return tuple(name for name, there in found.items() if there)


def describe(model: Bert) -> dict[str, Any]:
    """Converts the model to a BERT config."""
    if "next_sentence" in model.prediction_heads:
        architecture = "BertForPreTraining"
    else:
        architecture = "BertForMaskedLM" if "masked_lm" in model.prediction_heads else "BertModel"
    return {
        "architectures": [architecture],
        "position_embedding_type": "absolute",
        "type_vocab_size": model.token_types,
        "max_position_embeddings": model.max_length,
    } | encoder_fields(model)


def encoder_fields(model: Bert) -> dict[str, Any]:
    """Returns the fields of a Hugging Face config.json that describe the Transformer blocks (depth, width, heads, …)
    and the vocabulary size of a BERT or RoBERTa model.
    """
    config = model.transformer
    return {
        "vocab_size": model.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp.inner(config.width),
        "hidden_act": NAMES[config.mlp.activation],
        "layer_norm_eps": config.norm.epsilon,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
    }


class EncoderBridge(Bridge):
    """Chooses the training objective and the data task of an imported encoder with the heads of `Bert` (masked LM,
    pooler, next sentence), and converts the outputs and the loss of the JAX model to those of the corresponding class
    of the transformers library.
    """

    def objective(self, source: Source, model: Bert) -> Objective:
        """Returns a masked LM objective, or a sentence embedding objective if the model has no masked LM head."""
        if "masked_lm" in model.prediction_heads:
            return MaskedLM(next_sentence=float("next_sentence" in model.prediction_heads))
        return sentence_encoders.read(source.home, model, source.opened.path)

    def task(self, source: Source, model: Bert, objective: Any) -> Task:
        """Returns a masked LM task, with sentence pairs if the model has a next-sentence head and two token types."""
        length = text_length(model)
        pairs = "next_sentence" in model.prediction_heads and model.token_types > 1
        return MaskedSentencePairs(length, max(1, length * 15 // 100), next_sentence=pairs)

    def outputs(self, model: Bert, output: Any, objective: Any = None) -> dict[str, jax.Array]:
        """Returns the logits of the heads, or hidden vectors if there are no heads, keyed by their names in the
        transformers library.
        """
        found = super().outputs(model, output, objective)
        if "next_sentence" in model.prediction_heads:
            found["seq_relationship_logits"] = output.next_sentence_logits[:, 0]
        return found

    def labels(self, model: Bert, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the label arguments of the corresponding class of the transformers library for parity checks: the
        random targets in `rows` for all tokens except padding. The label of the next-sentence head is arbitrary: the
        token type of the last token.
        """
        found = {}
        if "masked_lm" in model.prediction_heads:
            found["labels"] = np.where(rows["segments"] > 0, rows["targets"], -100)
        if "next_sentence" in model.prediction_heads:
            found["next_sentence_label"] = rows["token_types"][:, -1]
        return found

    def loss(self, outputs: Mapping[str, jax.Array], rows: Mapping[str, jax.Array]) -> jax.Array:
        """Computes the masked LM loss, plus the next-sentence loss if the model has that head, in the same way as the
        transformers library.
        """
        loss = mean_cross_entropy(outputs["logits"], rows["targets"], rows["segments"])
        if "seq_relationship_logits" in outputs:
            # One prediction per row.
            logits, targets = outputs["seq_relationship_logits"][:, None], rows["token_types"][:, -1:]
            loss += mean_cross_entropy(logits, targets, jnp.ones(targets.shape))
        return loss

    def config_for_onnx(self, model: Bert, objective: Any) -> dict[str, Any]:
        """Returns the config of the BERT class of the transformers library that has the same heads as the model. Its
        arguments and outputs match those of an exported ONNX program.
        """
        if "masked_lm" in model.prediction_heads:
            architecture = "BertForPreTraining" if "next_sentence" in model.prediction_heads else "BertForMaskedLM"
        else:
            architecture = "BertModel"
        return {"model_type": "bert", "architectures": [architecture], **text_sizes(model)}


BRIDGE = EncoderBridge()

FAMILY = Family(
    model_type="bert",
    architectures=("BertForPreTraining", "BertForMaskedLM", "BertModel"),
    module=Bert,
    build=build,
    describe=describe,
    table=TABLE,
    headless_architectures=("BertModel",),
    special_tokens=MARKS,
    layout="encoder",
    bridge=BRIDGE,
)
