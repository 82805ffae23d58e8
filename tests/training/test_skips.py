"""Skipped steps are noticed at every step, logged with their lanes, and replayed."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from spoilt import Spoilt

import jaxformer as jf
from jaxformer import cli, digests
from jaxformer.data.pipeline import loader
from jaxformer.errors import InputError
from jaxformer.metrics.means import Mean
from jaxformer.runs import run as runs
from jaxformer.training.replay import replay
from jaxformer.training.skips import Skips

LANES = np.arange(6, dtype=np.int32).reshape(2, 3)


def means(norm):
    """The means of a step with a gradient norm."""
    return {"gradient_norm": Mean(jnp.float32(norm), jnp.ones(())), "loss": Mean(jnp.float32(6.0), jnp.float32(2.0))}


def watched(norms, in_a_row=0):
    """The skipped steps, and the message that ends the run; None if nothing does."""
    skips, found = Skips(in_a_row, [0, 1], ("loss",)), []
    try:
        for step, norm in enumerate(norms, 1):
            for skip in skips.add(step, means(norm), LANES + step):
                found.append(skip)
        for skip in skips.rest():
            found.append(skip)
    except InputError as error:
        return found, str(error)
    return found, None


def test_every_skip_is_found_with_its_lanes():
    found, message = watched([1.0, float("nan"), 2.0, float("inf")])
    assert [skip.step for skip in found] == [2, 4] and message is None
    assert found[0].values["loss"] == 3.0 and np.isnan(found[0].values["gradient_norm"])
    assert all((skip.lanes == LANES + skip.step).all() and skip.lanes.dtype == np.int32 for skip in found)


@pytest.mark.parametrize("before, bad", [(0, 10), (4, 6), (0, 30)])
def test_the_tenth_in_a_row_stops_the_run_at_once(before, bad):
    found, message = watched([1.0] * (before == 0) + [float("nan")] * bad + [1.0] * 5, before)
    last = (before == 0) + 10 - before
    assert found[-1].step == last and message.startswith(f"step {last}: the last 10 gradients were not finite")


def test_nine_in_a_row_and_nine_more_do_not():
    assert watched([float("nan")] * 9 + [1.0] + [float("nan")] * 9)[1] is None


@pytest.fixture(scope="module")
def experiment(tiny_config):
    """An experiment that saves every five steps, and logs only the last one."""
    return tiny.load(tiny_config, steps=12, evaluation__every=100, checkpoint__every=5, log__every=100)


@pytest.mark.slow
def test_a_skip_between_logged_steps_is_logged_and_its_batch_is_replayed(experiment, tmp_path, capsys):
    folder = tmp_path / "plain"
    plain = jf.fit(experiment, folder, quiet=True)
    data, seed, tokenizer = experiment.data, experiment.seed, plain.tokenizer
    with loader.train_batches(data, tokenizer, seed, range(data.batch)) as batches:
        expected = [next(batches)[0] for _ in range(12)]
    for step in (1, 6, 12):
        again = replay(folder, step)
        assert all((again.batch[name] == array).all() for name, array in expected[step - 1].items())
        assert again.checkpoint_step == {1: 5, 6: 5, 12: 10}[step]
        assert all(np.isfinite(row.loss) for row in again.rows)
    seconds = [set(batch["tokens"][:, 1].tolist()) for batch in expected]
    rare = min(set.union(*seconds), key=lambda token: sum(token in found for found in seconds))
    bad = [step for step, found in enumerate(seconds, 1) if rare in found]
    capsys.readouterr()
    run = jf.fit(dataclasses.replace(experiment, objective=Spoilt(bad=(rare,))), tmp_path / "spoilt")
    lines = [json.loads(line) for line in (run.folder / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == bad and all(line["gradient_norm"] is None for line in lines)
    assert capsys.readouterr().out.count(" skipped: its gradient norm is nan; ") == len(bad)
    assert np.array(lines[0]["lanes"]).shape == loader.initial_state(data).shape


@pytest.mark.slow
def test_an_endless_run_of_skips_ends_between_logged_steps(experiment, tmp_path, monkeypatch):
    every = dataclasses.replace(experiment, objective=Spoilt(bad=tuple(range(200))), steps=40)
    with pytest.raises(InputError, match=r"step 10: the last 10 gradients were not finite"):
        jf.fit(every, tmp_path / "run", quiet=True)
    lines = [digests.unseal_line(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 11))


@pytest.mark.slow
def test_the_command_prints_texts_and_losses(experiment, tmp_path, capsys):
    jf.fit(experiment, tmp_path / "run", quiet=True)
    capsys.readouterr()
    assert cli.main(["replay", str(tmp_path / "run"), "--step", "7", "--rows", "0", "3"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith("step 7 · 8 rows · losses by the parameters of step 5")
    rows = [line for line in lines if line.startswith("row ")]
    assert [line.split(" ·")[0] for line in rows] == ["row 0", "row 3"] and all(" loss " in line for line in rows)
    assert any(line.startswith('  tokens: "') and "[MASK]" in line for line in lines)
    for arguments, said in [(["--step", "0"], "expected at least 1"), (["--step", "7", "--rows", "8"], "0 to 7")]:
        assert cli.main(["replay", str(tmp_path / "run"), *arguments]) == 2
        assert said in capsys.readouterr().err
    assert runs.open_run(tmp_path / "run").step == 12
