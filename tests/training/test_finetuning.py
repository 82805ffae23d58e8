"""Fine-tuning: beginning from weights, what trains and what is held, LoRA, early ends, the best checkpoint."""

import dataclasses
import shutil
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
import transformers
from jax.sharding import PartitionSpec
from small_bert import assert_trees_close, assert_trees_identical, noisy_params, paths
from small_classifier import LABELS, review_experiment, small_backbone, write_reviews

import jaxformer as jf
from jaxformer import config
from jaxformer.config import Checkpoint, Evaluation
from jaxformer.data.pipeline.loader import train_batches
from jaxformer.data.sources.sources import JsonLines
from jaxformer.errors import InputError
from jaxformer.evaluations import BestMetric
from jaxformer.interop.huggingface.models import export_hf
from jaxformer.interop.huggingface.runs import export_run, from_pretrained
from jaxformer.layers.lora import Lora
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.parallel import sharding
from jaxformer.runs.run import RunTokenizer
from jaxformer.training.loop import loss_and_gradient, train_step
from jaxformer.training.optimizers import AdamW, Schedule
from jaxformer.training.state import abstract_state, init_state, model_params
from jaxformer.training.warm_start import Weights, check_model, match

STILL = AdamW(Schedule(0.0))
LORA = Lora(rank=2, target_modules=("attention/(query|output)/kernel$", "mlp/up/kernel$", "pooler/kernel$"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config):
    del tiny_config  # It lets compiled programs be kept.
    folder = tmp_path_factory.mktemp("reviews")
    write_reviews(folder)
    return folder


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A classifier that has learned something."""
    experiment = review_experiment(folder, steps=40, evaluation=Evaluation(every=20), checkpoint=Checkpoint(every=20))
    return jf.fit(experiment, tmp_path_factory.mktemp("runs") / "run", quiet=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A Hugging Face folder of a BERT with all heads, and its parameters."""
    model = Bert(small_backbone().transformer, vocab=19, max_length=16)
    params = noisy_params(model, np.zeros((1, 4), np.int32))
    out = tmp_path_factory.mktemp("weights") / "bert"
    export_hf(model, params, None, out)
    return out, params


def first_state(experiment):
    mesh = sharding.make_mesh(sharding.Mesh(1))
    return init_state(experiment, abstract_state(experiment, mesh))


def batch_of(experiment):
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = experiment.tokenizer.build(None, f"{folder}/tokenizer")
    with train_batches(experiment.data, tokenizer, 0, range(8)) as batches:
        return next(batches)[0]


@pytest.mark.slow
def test_it_learns_and_says_what_it_has_learned(run):
    results = run.evaluate()
    assert results["accuracy"] > 0.8 and results["f1/good"] > 0.8
    answer = run.predict("the film is great")
    assert answer.labels[0][0] == "good" and answer.labels[0][1] > 0.5
    assert all(line.startswith("[") for line in run.demonstrate())


@pytest.mark.slow
def test_it_leaves_for_transformers_with_its_labels_and_comes_back(run, tmp_path):
    assert export_run(run, tmp_path / "out", certificate=False)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.id2label == dict(enumerate(LABELS))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        [shares] = theirs(**tokenizer("the film is great", return_tensors="pt")).logits.softmax(-1).numpy()
    ours, again = (each.predict("the film is great").labels for each in (run, from_pretrained(tmp_path / "out")))
    assert dict(ours) == pytest.approx(dict(zip(LABELS, shares, strict=True)), abs=1e-5)
    assert dict(again) == pytest.approx(dict(ours), abs=1e-6)


class TestWhereItBegins:
    def begun(self, folder, home, **fields):
        run = jf.fit(review_experiment(folder, steps=1, optimizer=STILL, **fields), home / "run", quiet=True)
        return run.params

    @pytest.mark.slow
    def test_at_weights_of_hugging_face(self, folder, weights, tmp_path):
        out, theirs = weights
        params = self.begun(folder, tmp_path, init=str(out))
        known = {name: theirs[name] for name in ("embeddings", "transformer", "pooler")}
        assert_trees_close(params["backbone"], known, 1e-6)
        fresh = first_state(review_experiment(folder)).params["head"]
        assert_trees_close(params["head"], fresh, 1e-6)

    @pytest.mark.slow
    def test_at_a_run_of_the_same_labels_heads_and_all(self, folder, run, tmp_path):
        params = self.begun(folder, tmp_path, init=str(run.folder), tokenizer=RunTokenizer(str(run.folder)))
        assert_trees_identical(params, run.params)

    def test_other_labels_have_a_new_head(self, run):
        model = Classifier(small_backbone(), ("sad", "glad"))
        params = noisy_params(model, np.zeros((1, 4), np.int32), seed=1)
        start = match("x", Weights(run.experiment.model, run.params), Weights(model, params))
        assert_trees_close(start.params["backbone"], run.params["backbone"], 0)
        assert start.params["head"] is not params and (start.params["head"]["kernel"] == params["head"]["kernel"]).all()
        assert start.summary.endswith("are those of x; new: head; unused: head")

    def test_a_bert_begins_with_a_classifiers(self, run):
        model = Bert(small_backbone().transformer, vocab=19, max_length=16, prediction_heads=("masked_lm", "pooler"))
        params = noisy_params(model, np.zeros((1, 4), np.int32), seed=1)
        start = match("x", Weights(run.experiment.model, run.params), Weights(model, params))
        assert start.summary == f"{len(paths(params)) - 5} of {len(paths(params))} parameters are those of x; " + (
            "new: masked_lm; unused: head"
        )

    @pytest.mark.parametrize(
        "change, words",
        [
            ({"width": 32}, "width: 16 in the run, 32 now"),
            ({"depth": 3}, "depth: 2 in the run, 3 now"),
            ({"norm_position": "before"}, "norm_position: 'after' in the run, 'before' now"),
        ],
    )
    def test_not_at_another_model(self, change, words):
        stack = dataclasses.replace(small_backbone().transformer, **change)
        model = Classifier(dataclasses.replace(small_backbone(), transformer=stack), LABELS)
        with pytest.raises(InputError, match=f"init=x: another model: model.backbone.transformer.{words}"):
            check_model("x", small_backbone(), model)

    @pytest.mark.slow
    def test_not_with_more_positions(self, folder, weights, tmp_path):
        longer = Classifier(dataclasses.replace(small_backbone(), max_length=32), LABELS)
        with pytest.raises(InputError, match=r"another model: model.backbone.max_length: 16 in the run, 32 now"):
            self.begun(folder, tmp_path, init=str(weights[0]), model=longer)

    @pytest.mark.slow
    def test_not_at_a_folder_without_weights(self, folder, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match=r"not a run's folder"):
            self.begun(folder, tmp_path, init=str(tmp_path / "empty"))
        with pytest.raises(InputError, match=r"nothing here: no such folder; expected"):
            self.begun(folder, tmp_path, init="nothing here")

    def test_what_drops_out_or_is_a_head_may_differ(self):
        stack = dataclasses.replace(small_backbone().transformer, dropout=0.5, dtype="bfloat16", remat="full")
        check_model("x", Bert(stack, vocab=19, max_length=16), Classifier(small_backbone(), LABELS))

    def test_the_last_norm_belongs_to_the_head(self):
        stack = dataclasses.replace(small_backbone().transformer, norm_position="before")
        ends, ends_not = (
            Bert(dataclasses.replace(stack, last_norm=last_norm), vocab=19, max_length=16, prediction_heads=())
            for last_norm in (True, False)
        )
        check_model("x", ends, ends_not)
        found, wanted = (Weights(one, noisy_params(one, np.zeros((1, 4), np.int32))) for one in (ends, ends_not))
        assert match("x", found, wanted).summary.endswith("are those of x; unused: transformer/norm")
        assert match("x", wanted, found).summary.endswith("are those of x; new: transformer/norm")


class TestLinearProbing:
    @pytest.mark.slow
    def test_the_backbone_has_no_gradient_no_state_and_no_average(self, folder):
        optimizer = AdamW(Schedule(1e-2), freeze=("^backbone/",), ema=0.5)
        experiment = review_experiment(folder, optimizer=optimizer)
        state, batch = first_state(experiment), batch_of(experiment)
        _, gradient = loss_and_gradient(experiment, state.params, batch, jax.random.key(0))
        assert {*paths(gradient)} == {"head/kernel", "head/bias"} == {*paths(state.average)}
        assert sum(leaf.size for leaf in jax.tree.leaves(state.optimizer)) < 3 * 34 + 5
        after, _ = jax.jit(train_step, static_argnums=0)(experiment, state, batch)
        assert_trees_identical(after.params["backbone"], state.params["backbone"])
        assert (after.params["head"]["kernel"] != state.params["head"]["kernel"]).any()
        assert paths(after.best_params).keys() == paths(state.params).keys()

    @pytest.mark.slow
    def test_no_work_is_done_for_its_gradient(self, folder):
        """Counted by the compiler: hardly more than the forward pass."""

        def flops(**fields):
            experiment = review_experiment(folder, optimizer=AdamW(Schedule(1e-2), **fields))
            state, batch = first_state(experiment), batch_of(experiment)
            compiled = jax.jit(train_step, static_argnums=0).lower(experiment, state, batch).compile()
            return compiled.cost_analysis()["flops"]

        assert flops(freeze=("^backbone/",)) < 0.5 * flops()

    @pytest.mark.slow
    def test_it_runs_and_is_read_back(self, folder, tmp_path):
        optimizer = AdamW(Schedule(1e-2), freeze=("^backbone/",), ema=0.5)
        experiment = review_experiment(folder, steps=4, optimizer=optimizer)
        whole = jf.fit(experiment, tmp_path / "whole", quiet=True)
        assert_trees_identical(jf.open_run(tmp_path / "whole").params, whole.params)
        assert whole.params["head"]["kernel"].shape == (16, 2)

    def test_a_pattern_that_finds_nothing_is_an_error_before_the_run(self, folder, tmp_path):
        experiment = review_experiment(folder, optimizer=AdamW(freeze=("^backbon/",)))
        with pytest.raises(InputError, match=r"optimizer.freeze='\^backbon/': matches no parameter's path"):
            jf.fit(experiment, tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()


class TestLora:
    @pytest.mark.slow
    def test_it_changes_nothing_at_first(self, folder):
        plain, adapted = review_experiment(folder), review_experiment(folder, lora=LORA)
        before, state = first_state(plain).params, first_state(adapted)
        assert_trees_identical(state.params["base"], before)
        assert_trees_identical(model_params(adapted, state.params), before)
        assert all((leaf == 0).all() == path.endswith("/b") for path, leaf in paths(state.params["lora"]).items())

    @pytest.mark.slow
    def test_merged_is_the_sum_of_both_maps(self):
        model, tokens = Classifier(small_backbone(), LABELS), np.zeros((1, 4), np.int32)
        base = noisy_params(model, tokens)
        pairs = nn.unbox(LORA.init(jax.random.key(0), model.init(jax.random.key(0), tokens)["params"]))
        rng = np.random.default_rng(0)
        pairs = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), pairs)
        merged = LORA.merge({"base": base, "lora": pairs})
        x = rng.normal(size=(5, 16))
        for name, equation, into, out in [
            ("attention/query", "nd,dhk->nhk", "nd,dr->nr", "nr,rhk->nhk"),
            ("mlp/up", "nd,df->nf", "nd,dr->nr", "nr,rf->nf"),
            ("attention/output", "nhk,hkd->nd", "nhk,hkr->nr", "nr,rd->nd"),
        ]:
            path = f"backbone/transformer/blocks/{name}"
            inputs = x.reshape(5, 2, 8) if "output" in name else x
            for layer in range(2):
                a, b = (np.asarray(paths(pairs)[f"{path}/{part}"][layer], np.float64) for part in "ab")
                kernel = paths(base)[f"{path}/kernel"][layer]
                expected = np.einsum(equation, inputs, kernel)
                expected += LORA.alpha / LORA.rank * np.einsum(out, np.einsum(into, inputs, a), b)
                actual = np.einsum(equation, inputs, paths(merged)[f"{path}/kernel"][layer])
                np.testing.assert_allclose(actual, expected, atol=1e-4)
        untouched = paths(base).keys() - {f"{path.rpartition('/')[0]}/kernel" for path in paths(pairs)}
        assert len(untouched) == len(paths(base)) - 4
        for path in untouched:
            assert paths(merged)[path] is paths(base)[path]

    @pytest.mark.slow
    def test_the_optimizers_memory_is_that_of_its_own_parameters(self, folder):
        def moments(rank):
            experiment = review_experiment(folder, lora=dataclasses.replace(LORA, rank=rank))
            state = first_state(experiment)
            own = sum(leaf.size for leaf in jax.tree.leaves(state.params["lora"]))
            head = sum(leaf.size for leaf in jax.tree.leaves(state.params["base"]["head"]))
            held = sum(leaf.nbytes for leaf in jax.tree.leaves(state.optimizer))
            assert held == 2 * 4 * (own + head) + 4 * 2  # Two moments, and two counts of steps.
            return own

        assert moments(4) == 2 * moments(2)

    def test_sharded_pairs_have_the_letters_of_their_kernels(self, folder):
        experiment = review_experiment(folder, lora=LORA)
        mesh = sharding.make_mesh(sharding.Mesh(2, 2, 2))
        leaves = paths(abstract_state(experiment, mesh).params["lora"])
        query = "backbone/transformer/blocks/attention/query"
        assert leaves[f"{query}/a"].sharding.spec == PartitionSpec(None, "fsdp", None)
        assert leaves[f"{query}/b"].sharding.spec == PartitionSpec(None, None, "tensor", None)

    @pytest.mark.slow
    def test_a_run_of_it_learns_resumes_bit_for_bit_and_is_merged_for_all_else(self, folder, tmp_path):
        experiment = review_experiment(folder, steps=8, lora=LORA, optimizer=AdamW(Schedule(3e-2), ema=0.5))
        whole = jf.fit(experiment, tmp_path / "whole", quiet=True)
        jf.fit(config.override(experiment, {"checkpoint.every": 5}), tmp_path / "again", quiet=True)
        before = first_state(experiment).params["base"]
        assert paths(whole.params).keys() == paths(before).keys()
        changed = {
            path for path, leaf in paths(whole.params).items() if (np.asarray(leaf) != paths(before)[path]).any()
        }
        assert {path.removeprefix("backbone/") for path in changed} == {
            "head/kernel",
            "head/bias",
            "pooler/kernel",
            *(f"transformer/blocks/{name}/kernel" for name in ("attention/query", "attention/output", "mlp/up")),
        }
        shutil.rmtree(tmp_path / "again" / "checkpoints" / "8")
        jf.fit(config.override(experiment, {"checkpoint.every": 5}), tmp_path / "again", quiet=True)
        tiny.assert_equal(tiny.saved(tmp_path / "again"), tiny.saved(tmp_path / "whole"))
        opened = jf.open_run(tmp_path / "whole")
        assert_trees_close(opened.params, whole.params, 1e-6)
        assert opened.evaluate()["loss"] == pytest.approx(
            tiny.metrics(whole.folder, "validation")[-1]["loss"], rel=1e-5
        )
        assert opened.predict("a great film").labels == whole.predict("a great film").labels

    def test_what_is_wrong_with_it_is_said_in_one_line(self, folder):
        with pytest.raises(InputError, match=r"lora.rank=0: expected at least 1"):
            Lora(rank=0)
        message = r"lora.target_modules='querry': matches no kernel path; an example of a path is backbone"
        with pytest.raises(InputError, match=message):
            first_state(review_experiment(folder, lora=Lora(target_modules=("querry",))))
        with pytest.raises(
            InputError, match=r"optimizer.freeze=.*: lora determines which parameters are trained; expected none"
        ):
            review_experiment(folder, lora=LORA, optimizer=AdamW(freeze=("pooler",)))


class TestAnEarlyEnd:
    def patient(self, folder, **fields):
        """A rate so high that the loss is best at the first evaluation."""
        checkpoint = Checkpoint(every=100, keep=1, best="loss")
        optimizer = AdamW(Schedule(3.0, decay="constant"))
        evaluation = Evaluation(every=1, patience=2)
        defaults = {"checkpoint": checkpoint, "evaluation": evaluation, "optimizer": optimizer}
        return review_experiment(folder, steps=30, **(defaults | fields))

    @pytest.mark.slow
    def test_it_comes_when_nothing_has_become_better(self, folder, tmp_path):
        experiment = self.patient(folder)
        run = jf.fit(experiment, tmp_path / "run", quiet=True)
        losses = [line["loss"] for line in tiny.metrics(run.folder, "validation")]
        best = int(np.argmin(losses))
        assert len(losses) == best + 3 < 30
        assert run.step == best + 1 and run.evaluate()["loss"] == pytest.approx(min(losses), rel=1e-5)
        assert jf.open_run(run.folder).step == run.step
        kept = sorted(int(path.name) for path in (run.folder / "checkpoints").iterdir())
        assert kept == [best + 1, best + 3]
        again = jf.fit(experiment, run.folder, quiet=True)  # It knows that it has ended.
        assert again.step == run.step and len(tiny.metrics(run.folder, "validation")) == len(losses)
        patient = config.override(experiment, {"evaluation.patience": 3})
        jf.fit(patient, run.folder, quiet=True)
        assert len(tiny.metrics(run.folder, "validation")) > len(losses)

    def test_patience_needs_a_metric(self, folder):
        with pytest.raises(InputError, match=r"evaluation.patience=2: needs a metric; set checkpoint.best"):
            self.patient(folder, checkpoint=Checkpoint())

    @pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "f1/good", "matthews"])
    def test_the_best_of_what_should_be_high_is_the_highest(self, metric, folder):
        experiment = review_experiment(folder, checkpoint=Checkpoint(best=metric))
        assert experiment.best_metric == BestMetric("validation", metric, higher_is_better=True)


def test_labels_must_be_the_models(folder):
    with pytest.raises(InputError, match=r"data.task.labels=\('bad', 'good'\): expected the model's, \('a', 'b'\)"):
        review_experiment(folder, model=Classifier(small_backbone(), ("a", "b")))


def test_a_label_that_is_not_known_ends_the_start_in_one_line(folder, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a film", "label": "fair"}\n')
    experiment = review_experiment(folder)
    data = dataclasses.replace(experiment.data, train=JsonLines((str(tmp_path / "train.jsonl"),)))
    with pytest.raises(InputError, match="label 'fair': unknown; expected one of bad, good"):
        jf.fit(dataclasses.replace(experiment, data=data), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
