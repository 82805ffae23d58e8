"""Direct preference optimization: loss and gradient equal those of PyTorch and TRL, and a run learns preferences."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
import tiny
import torch
import transformers
from chat_templates import CHATML
from small_bert import assert_trees_close, small_bert
from small_chat import write_chat_model

import jaxformer as jf
from jaxformer.data.pipeline import loader
from jaxformer.data.tokenizers.loading import load_tokenizer
from jaxformer.errors import InputError
from jaxformer.objectives.dpo import SIDES
from jaxformer.parallel import sharding
from jaxformer.training.gradients import loss_and_gradient
from jaxformer.training.loop import fit
from jaxformer.training.state import abstract_state

TEMPLATE = jf.data.ChatTemplate(CHATML)
BETA, SMOOTHING = 0.3, 0.1
LINES = [
    {
        "prompt": [{"role": "user", "content": f"What was the light called? {number}"}],
        "chosen": [{"role": "assistant", "content": "Day" + "!" * (number % 3)}],
        "rejected": [{"role": "assistant", "content": "the darkness; night"[: 5 + number]}],
    }
    for number in range(8)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models as Hugging Face folders, `start` and `other`, and pairs of answers."""
    found = tmp_path_factory.mktemp("dpo")
    for number, name in enumerate(("start", "other")):
        write_chat_model(found / name, CHATML, seed=number)
    (found / "pairs.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in LINES))
    return found


@pytest.fixture(scope="module")
def experiment(folder):
    pairs = jf.data.JsonLines((str(folder / "pairs.jsonl"),))
    model, _ = jf.import_hf(folder / "start")
    return jf.Experiment(
        model=model,
        objective=jf.objectives.Dpo(beta=BETA, template=TEMPLATE),
        data=jf.data.Data(pairs, jf.data.Preferences(64, template=TEMPLATE), batch=8, validation=pairs),
        tokenizer=jf.tokenizers.HuggingFaceTokenizer(str(folder / "start")),
        optimizer=jf.optimizers.AdamW(jf.optimizers.Schedule(3e-3)),
        init=str(folder / "start"),
        steps=4,
        evaluation=jf.Evaluation(every=4),
        checkpoint=jf.Checkpoint(every=2),
        log=jf.Log(every=1),
    )


@pytest.fixture(scope="module")
def batch(experiment, folder):
    tokenizer = experiment.tokenizer.build(None, str(folder / "kept"))
    return next(loader.evaluation_batches(experiment.data.validation, experiment.data, tokenizer, 0, range(8)))


def smoothed(experiment):
    objective = dataclasses.replace(experiment.objective, label_smoothing=SMOOTHING)
    return dataclasses.replace(experiment, objective=objective)


def parameters(folder):
    return [jf.import_hf(folder / name)[1] for name in ("other", "start")]


@pytest.fixture(scope="module")
def ours(experiment, batch, folder):
    """Means and gradient of the model `other` with the reference model `start`."""
    params, reference = parameters(folder)
    function = jax.jit(loss_and_gradient, static_argnums=0)
    return jax.device_get(function(smoothed(experiment), params, batch, jax.random.key(0), reference))


def torch_log_probabilities(network, batch, side):
    """The log-probability of each answer, by the model of transformers."""
    tokens, segments, _, targets, weights = (torch.from_numpy(np.array(batch[name])) for name in SIDES[side])
    logits = network(input_ids=tokens.long(), attention_mask=(segments > 0).long()).logits
    found = torch.log_softmax(logits.float(), -1).gather(-1, targets.long()[..., None])[..., 0]
    return (found * weights).sum(-1)


@pytest.mark.slow
def test_loss_and_gradient_equal_the_formula_in_pytorch(batch, folder, ours):
    networks = [transformers.AutoModelForCausalLM.from_pretrained(folder / name) for name in ("other", "start")]
    found = [{side: torch_log_probabilities(network, batch, side) for side in SIDES} for network in networks]
    policy, reference = found[0], {side: values.detach() for side, values in found[1].items()}
    rewards = {side: BETA * (policy[side] - reference[side]) for side in SIDES}
    margins = rewards["chosen"] - rewards["rejected"]
    log_sigmoid = torch.nn.functional.logsigmoid
    loss = -((1 - SMOOTHING) * log_sigmoid(margins) + SMOOTHING * log_sigmoid(-margins)).mean()
    loss.backward()
    means, gradient = ours
    theirs = {"loss": loss, "margin": margins.mean(), "accuracy": (margins > 0).float().mean()}
    theirs |= {f"{side}_reward": values.mean() for side, values in rewards.items()}
    assert {name: means[name].value for name in theirs} == pytest.approx(
        {name: value.item() for name, value in theirs.items()}, rel=1e-4, abs=1e-5
    )
    assert 0 < theirs["accuracy"] < 1 and means["loss"].weight == 8
    expected = networks[0].get_input_embeddings().weight.grad.numpy()
    np.testing.assert_allclose(gradient["embeddings"]["token"], expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_loss_equals_that_of_trl(folder, ours, tmp_path):
    trl = pytest.importorskip("trl")
    import datasets

    networks = [transformers.AutoModelForCausalLM.from_pretrained(folder / name) for name in ("other", "start")]
    settings = trl.DPOConfig(
        str(tmp_path), beta=BETA, per_device_train_batch_size=8, max_length=None, report_to=[], use_cpu=True, bf16=False
    )
    trainer = trl.DPOTrainer(
        model=networks[0],
        ref_model=networks[1],
        args=settings,
        train_dataset=datasets.Dataset.from_list(LINES),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder / "start"),
    )
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    means, _ = ours
    # Smoothing adds a share of the loss of interchanged answers, which is larger by the margin.
    smoothed_loss = loss.item() + SMOOTHING * means["margin"].value
    assert means["loss"].value == pytest.approx(smoothed_loss, rel=1e-4)


@pytest.mark.slow
def test_micro_batches_have_the_gradient_of_the_batch(experiment, batch, folder, ours):
    params, reference = parameters(folder)
    parts = dataclasses.replace(smoothed(experiment), optimizer=dataclasses.replace(experiment.optimizer, accumulate=2))
    function = jax.jit(loss_and_gradient, static_argnums=0)
    means, gradient = function(parts, params, batch, jax.random.key(0), reference)
    assert_trees_close(gradient, ours[1], 1e-5, 1e-4)
    assert float(means["loss"].value) == pytest.approx(float(ours[0]["loss"].value), rel=1e-5)


@pytest.fixture(scope="module")
def run(experiment, folder):
    """A run that was trained in two parts."""
    for steps in (2, 4):
        found = fit(dataclasses.replace(experiment, steps=steps), folder / "run", quiet=True)
    return found


@pytest.mark.slow
def test_a_run_learns_preferences_beside_its_start(run, folder):
    lines = tiny.metrics(run.folder)
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5) and lines[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["margin"] > 0
    stored = {path: array for path, array in tiny.saved(run.folder).items() if path.startswith("['reference']")}
    start = jf.import_hf(folder / "start")[1]
    assert len(stored) == len(jax.tree.leaves(start))
    np.testing.assert_array_equal(stored["['reference']['embeddings']['token']"], start["embeddings"]["token"])
    assert np.abs(stored["['reference']['embeddings']['token']"] - run.params["embeddings"]["token"]).max() > 1e-3
    logged = tiny.metrics(run.folder, "validation")[-1]
    found = jf.open_run(run.folder).evaluate()
    assert found == pytest.approx({name: logged[name] for name in found}, rel=1e-5)
    assert list(found) == ["loss", "accuracy", "margin", "chosen_reward", "rejected_reward"]
    assert found["margin"] == pytest.approx(found["chosen_reward"] - found["rejected_reward"], rel=1e-4)


@pytest.mark.slow
def test_the_run_is_exported_with_its_chat_template(run, tmp_path):
    jf.export_run(run, tmp_path / "out", certificate=False)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.chat_template == CHATML
    expected = run.objective.template.encode_prompt([("user", "Day?")], run.tokenizer).tolist()
    messages = [{"role": "user", "content": "Day?"}]
    assert theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == expected
    assert (load_tokenizer(run.folder / "tokenizer").encode("Day?") == run.tokenizer.encode("Day?")).all()


def test_adapters_need_no_copy_of_the_reference_model(experiment):
    mesh = sharding.make_mesh(sharding.Mesh())
    assert abstract_state(experiment, mesh).reference is not None
    lora = dataclasses.replace(experiment, lora=jf.Lora(rank=2))
    assert abstract_state(lora, mesh).reference is None
    trained = dataclasses.replace(experiment, lora=jf.Lora(rank=2, modules_to_save=("norm",)))
    assert abstract_state(trained, mesh).reference is not None


def test_what_cannot_learn_preferences_is_refused(experiment):
    with pytest.raises(InputError, match=r"^init=None: objective=Dpo compares the model with the one it starts from"):
        dataclasses.replace(experiment, init=None)
    with pytest.raises(InputError, match=r"^objective.beta=0.0: expected above 0"):
        jf.objectives.Dpo(beta=0.0)
    with pytest.raises(InputError, match="needs a Gpt or another decoder; the model is a Bert"):
        experiment.objective.check_model(small_bert(depth=1))
    with pytest.raises(InputError, match="the task's rows have no inputs; use Preferences"):
        experiment.objective.check(experiment.model, jf.data.Dialogue(16).row)


def test_preferences_are_not_packed(experiment, folder):
    tokenizer = experiment.tokenizer.build(None, str(folder / "kept"))
    with pytest.raises(InputError, match=r"^data.pack=True: a row of Preferences contains one pair"):
        experiment.data.task.check(tokenizer, True)
