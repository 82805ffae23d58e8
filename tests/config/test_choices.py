"""Names that people type: those of other programs lead to ours, and a class can be chosen by its name."""

import dataclasses

import pytest
from small_config import message, write_config

from jaxformer import config
from jaxformer.data.sources.sources import Tfds
from jaxformer.layers.lora import Lora
from jaxformer.layers.mlp import GatedMlp
from jaxformer.layers.norms import RMSNorm
from jaxformer.suggestions import FOREIGN, nearest
from jaxformer.training.optimizers import AdamW, Lion

FIELDS = {
    "lr": "optimizer.schedule.peak",
    "learning_rate": "optimizer.schedule.peak",
    "learning-rate": "optimizer.schedule.peak",
    "optimizer.lr": "optimizer.schedule.peak",
    "batch_size": "data.batch",
    "data.batch_size": "data.batch",
    "per_device_train_batch_size": "data.batch",
    "epochs": "steps",
    "num_train_epochs": "steps",
    "max_steps": "steps",
    "warmup": "optimizer.schedule.warmup",
    "warmup_steps": "optimizer.schedule.warmup",
    "weight_decay": "optimizer.weight_decay",
    "max_grad_norm": "optimizer.clip",
    "gradient_accumulation_steps": "optimizer.accumulate",
    "hidden_size": "model.transformer.width",
    "model.hidden_size": "model.transformer.width",
    "d_model": "model.transformer.width",
    "num_layers": "model.transformer.depth",
    "num_hidden_layers": "model.transformer.depth",
    "num_attention_heads": "model.transformer.heads",
    "intermediate_size": "model.transformer.mlp.width",
    "hidden_dropout_prob": "model.transformer.dropout",
    "gradient_checkpointing": "model.transformer.remat",
    "bf16": "model.transformer.dtype",
    "vocab_size": "model.vocab",
    "max_length": "model.max_length",
    "max_position_embeddings": "model.max_length",
    "num_workers": "data.workers",
    "eval_steps": "evaluation.every",
    "save_steps": "checkpoint.every",
    "logging_steps": "log.every",
    "output_dir": "workdir",
    "wokdir": "workdir",
}


@pytest.fixture
def file(tmp_path):
    return write_config(tmp_path)


@pytest.mark.parametrize("typed, meant", FIELDS.items(), ids=FIELDS)
def test_names_of_other_programs_lead_to_the_field(typed, meant, file):
    said = message(config.parse, file, [f"--{typed}", "3"])
    assert said == f"--{typed.replace('-', '_')}: no such field; perhaps --{meant}"


def test_in_a_config_file_too(file):
    file.write_text(file.read_text() + "\nfrom jaxformer.training.optimizers import AdamW\nAdamW(lr=1e-3)\n")
    assert message(config.load, file).endswith("unexpected keyword argument 'lr'; perhaps schedule")
    assert nearest("hidden_size", ["width", "depth"]) == "width"


def test_no_foreign_name_leads_to_two_fields():
    names = [name for path, names in FOREIGN.items() for name in names.split() if path != "heads"]
    assert len(names) == len(set(names))


def test_a_class_is_chosen_by_name_and_keeps_what_was_set(file):
    before = config.load(file).optimizer
    assert isinstance(before, AdamW)
    flags = "--optimizer Lion --optimizer.schedule.peak 1e-5 --model.transformer.norm RMSNorm"
    experiment = config.parse(
        file, f"{flags} --model.transformer.mlp GatedMlp --optimizer.freeze --lora Lora --lora.rank 2".split()
    )
    schedule = dataclasses.replace(before.schedule, peak=1e-5)
    assert experiment.optimizer == Lion(schedule)
    assert experiment.model.transformer.norm == RMSNorm()
    assert experiment.model.transformer.mlp == GatedMlp()
    assert experiment.lora == Lora(rank=2)
    assert config.load(file, {"optimizer": "Lion"}).optimizer == Lion(before.schedule, **_set(before))


def _set(optimizer):
    """The fields that differ from their defaults, but the schedule."""
    fields = {field.name: (field.default, getattr(optimizer, field.name)) for field in dataclasses.fields(optimizer)}
    return {name: now for name, (default, now) in fields.items() if now != default and name != "schedule"}


def test_fields_without_default_are_given_beside_the_class(file):
    changed = config.load(file, {"data.validation": "Tfds", "data.validation.name": "imdb_reviews"})
    assert changed.data.validation == Tfds("imdb_reviews")
    said = message(config.parse, file, ["--data.validation", "Columns"])
    assert said == "--data.validation Columns: needs --data.validation.source too"


def test_a_wrong_class_is_refused_with_those_that_there_are(file):
    said = message(config.parse, file, ["--optimizer", "Adam"])
    assert said.startswith("--optimizer Adam: expected a class, one of Adafactor, AdamW, Lion, Muon, or one of the")
    assert "LayerNorm, RMSNorm" in message(config.parse, file, ["--model.transformer.norm", "BatchNorm"])
    assert "None" not in message(config.parse, file, ["--lora", "LoRA"]).split(":")[0]
