"""The training step, and the function `fit`, which trains a run from start to end."""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxformer import config, digests, storage
from jaxformer.config import Experiment
from jaxformer.data.pipeline import loader
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.metrics.means import Mean
from jaxformer.parallel import host_memory, sharding
from jaxformer.parameter_paths import join
from jaxformer.progress import Display, display
from jaxformer.reports import charts
from jaxformer.runs import run as runs
from jaxformer.runs import writing
from jaxformer.runs.data_record import write_record
from jaxformer.runs.folder import CHECKPOINTS, DAMAGED, Claim
from jaxformer.runs.parameters import read_params, used_params
from jaxformer.runs.run import Run
from jaxformer.runs.sessions import EVALUATION, SAVING
from jaxformer.training import agreement, forking, self_check, trackers
from jaxformer.training.checkpoints import Checkpoints
from jaxformer.training.evaluation import Evaluations
from jaxformer.training.first_state import restore_or_init
from jaxformer.training.gradients import Means, loss_and_gradient
from jaxformer.training.logs import Logs, Meter, describe
from jaxformer.training.moments import SaveClock, due, out_of_patience
from jaxformer.training.preparation import prepare_data, prepare_evaluation
from jaxformer.training.profiling import Profile
from jaxformer.training.session_log import Stopwatch
from jaxformer.training.signals import Stop
from jaxformer.training.skips import Skips
from jaxformer.training.stages import check_batch, check_experts, check_pipeline
from jaxformer.training.state import (
    TrainState,
    abstract_batch,
    abstract_state,
    check_positions,
    parameter_info,
    reference_params,
    split_frozen,
)
from jaxformer.training.write_errors import write_errors


def train_step(experiment: Experiment, state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Means]:
    """Runs one training step. If the gradient is not finite, the step is skipped: only the step counts in the state
    change.

    Args:
      experiment: the experiment; static under jit.
      state: the state before the step, which may be donated.
      batch: arrays [batch, ...], as documented by the objective.

    Returns:
      The state after the step, and the losses and metrics of the batch as weighted means, including the gradient norm.
    """
    key = jax.random.fold_in(jax.random.key(experiment.seed), state.step)
    reference = reference_params(experiment, state.params, state.reference)
    means, gradient = loss_and_gradient(experiment, state.params, batch, key, reference)
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(norm)
    transform = experiment.optimizer.transform(experiment.steps, parameter_info(experiment))

    offload = experiment.optimizer.offload

    def update(params, optimizer, average):
        optimizer = host_memory.to_device(optimizer) if offload else optimizer
        updates, optimizer = transform.update(gradient, optimizer, params)
        optimizer = host_memory.to_host(optimizer) if offload else optimizer
        params = optax.apply_updates(params, updates)
        decay = experiment.optimizer.ema
        if decay is not None:
            average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, params)
        return params, optimizer, average

    def keep(params, optimizer, average):
        return params, host_memory.to_host(optimizer) if offload else optimizer, average

    # A condition, not a choice between two results, lets the donated arrays be updated in place.
    trained, frozen = split_frozen(experiment, state.params)
    trained, optimizer, average = jax.lax.cond(finite, update, keep, trained, state.optimizer, state.average)
    skipped = 1 - finite.astype(jnp.int32)
    after = TrainState(
        step=state.step + 1,
        params=join(trained, frozen),
        optimizer=optimizer,
        average=average,
        skipped=state.skipped + skipped,
        skipped_in_a_row=(state.skipped_in_a_row + 1) * skipped,
        reference=state.reference,
    )
    return after, means | {"gradient_norm": Mean(norm, jnp.ones(()))}


def jit_step(experiment: Experiment, mesh: jax.sharding.Mesh):
    """Jits `train_step` for a mesh: (state, batch) → (state, means). Call it in a `sharding.use` block with the mesh.

    The state is donated, and the returned state has the same shardings. These are set explicitly because XLA for GPUs
    would otherwise replicate the outputs of the `lax.cond` that skips steps.
    """
    shardings = sharding.shardings_of(abstract_state(experiment, mesh)), sharding.replicated(mesh)
    return jax.jit(functools.partial(train_step, experiment), donate_argnums=0, out_shardings=shardings)


def trace_step(experiment: Experiment, mesh: jax.sharding.Mesh) -> jax.stages.Traced:
    """Traces `train_step` for a mesh. Also works for a mesh whose devices do not exist on this machine."""
    with sharding.use(mesh, experiment.mesh):
        return jit_step(experiment, mesh).trace(abstract_state(experiment, mesh), abstract_batch(experiment, mesh))


def lower_step(experiment: Experiment, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    """Lowers `train_step` for a mesh. Also works for a mesh whose devices do not exist on this machine. `.compile()` of
    the result compiles the step for these devices.
    """
    with sharding.use(mesh, experiment.mesh):
        return trace_step(experiment, mesh).lower()


def compile_step(experiment: Experiment, mesh: jax.sharding.Mesh):
    """Returns a function (state, batch) → (state, means) that runs `train_step` on a mesh. It is compiled at the first
    call, and donates the state.
    """
    step = jit_step(experiment, mesh)

    def run(state, batch):
        with sharding.use(mesh, experiment.mesh):
            return step(state, batch)

    return run


@dataclasses.dataclass(frozen=True)
class Training:
    """All objects that `train_to_end` needs to train a run."""

    experiment: Experiment
    """Experiment that is trained."""
    mesh: jax.sharding.Mesh
    """Device mesh that the training runs on."""
    tokenizer: Tokenizer | None
    """Tokenizer of the run. None if the data does not contain text."""
    claim: Claim
    """Write access to the run's folder."""
    stop: Stop
    """Records signals that request to stop, and determines the step at which all processes stop."""
    train: Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Means]]
    """Training step (state, batch) → (state, means), which is compiled at the first call."""
    evaluate: Evaluations | None
    """Function that runs all evaluations of the experiment. None without held-out data."""
    saved: Checkpoints
    """Checkpoints of the run, for saving and reading."""
    batches: Iterable[tuple[loader.Batch, np.ndarray]]
    """Yields this process's rows of each training batch, together with the state of the data pipeline after the batch.
    """
    logs: Logs
    """Logs of the run."""
    profile: Profile
    """Traces some steps if the user has requested a profile."""
    watch: Stopwatch
    """Measures what the time is spent on."""
    forked: bool
    """Whether the run is a fork of another run and does not have a checkpoint yet. If True, its initial state is saved.
    """


def fit(
    experiment: Experiment,
    workdir: str | os.PathLike,
    quiet: bool = False,
    profile: bool = False,
    check_kernels: bool = True,
    accept_changed_data: bool = False,
) -> Run:
    """Trains a run from its latest checkpoint, or from the start, until it has done `experiment.steps` steps.

    After SIGTERM or Ctrl-C, saves and returns a run whose `stopped` is set. The same call then resumes from there with
    identical results.

    Args:
      experiment: the experiment.
      workdir: the run's folder, which is created if it is missing.
      quiet: whether to print nothing.
      profile: whether to trace a few steps into the subfolder `profile` of the run, for XProf.
      check_kernels: whether to compare fast implementations, such as attention kernels, with plain ones before the
        first step, if this has not been done on this kind of device yet (see `self_check`).
      accept_changed_data: whether to resume a run whose data has changed since it began.

    Returns:
      The run, with its latest parameters, or its best ones if the experiment sets `checkpoint.best`.

    Raises:
      InputError: If the experiment, its data or the folder is invalid, a fast implementation is wrong on this device,
        or too many gradients are not finite.
      Stopped: If there is a signal when nothing has to be saved: before the first step, or after the last one is saved.
    """
    began, folder, data = time.monotonic(), storage.path(workdir), experiment.data
    trackers.check_installed(experiment.log.trackers)
    if experiment.log.report:
        charts.check_library()
    agreement.check_same(experiment, folder)
    mesh = sharding.make_mesh(experiment.mesh)
    check_batch(experiment, mesh)
    check_experts(experiment, mesh)
    check_positions(experiment, mesh)
    check_pipeline(experiment, mesh)
    if experiment.optimizer.offload:
        host_memory.check(mesh, "optimizer.offload=True")
    experiment.objective.check(experiment.model, data.task.row)
    rows = sharding.local_rows(data.batch, mesh)

    with write_errors(folder), contextlib.ExitStack() as stack:
        shown = stack.enter_context(display(quiet or jax.process_index() > 0))
        stop = stack.enter_context(Stop(experiment.checkpoint.grace))
        claim = stack.enter_context(writing.writer(folder, experiment))
        agreement.check_shared(folder)
        before = writing.read_experiment(folder, known=experiment) if claim.is_run else None
        if check_kernels:
            self_check.run(experiment, mesh)
        experiment, tokenizer, record = prepare_data(experiment, claim, accept_changed_data)
        train = compile_step(experiment, mesh)
        evaluate = prepare_evaluation(experiment, tokenizer, mesh)
        saved = stack.enter_context(
            Checkpoints(folder / CHECKPOINTS, experiment.checkpoint, claim, experiment.best_metric)
        )
        forked = experiment.fork is not None and saved.latest is None
        state, lanes, begun = restore_or_init(saved, experiment, mesh)
        step = int(state.step)
        record = record.at(step)
        if step <= record.changed_at:
            lanes = loader.abandon_documents(data, lanes)
        if step > experiment.steps:
            return already_done(folder, experiment, step, shown)
        saved.set_aside(step, folder / DAMAGED)
        batches = stack.enter_context(loader.train_batches(data, tokenizer, experiment.seed, rows, lanes[rows]))
        claim.start(digests.seal(config.to_json(experiment)))
        write_record(claim.folder, record)
        logs = stack.enter_context(Logs(folder, experiment.steps, step, quiet, claim.moved, experiment.log))
        bent = forking.rate_change(before, experiment, state) if before and step else []
        logs.say("\n".join(filter(None, [describe(experiment, state, mesh), begun, *bent, *record.messages])))
        traced = stack.enter_context(Profile(folder if profile else None, step, experiment.steps))
        logs.sessions.start(experiment, state, mesh)
        watch = Stopwatch(began)
        training = Training(
            experiment, mesh, tokenizer, claim, stop, train, evaluate, saved, batches, logs, traced, watch, forked
        )
        state = train_to_end(training, state, lanes[rows], Meter(experiment, began))
        return finish(training, state)


def train_to_end(training: Training, state: TrainState, lanes: np.ndarray, meter: Meter) -> TrainState:
    """Trains until the last step is done, a signal requests to stop, or `evaluation.patience` ends the run early.
    Evaluates, logs and saves checkpoints when they are due, and saves the last state. Returns this state.

    Args:
      training: objects of the training.
      state: initial state, which is donated.
      lanes: state of the data pipeline for this process's rows before the first batch, int32 [rows, S].
      meter: measures the speed of the steps.
    """
    experiment, mesh, logs, saved = training.experiment, training.mesh, training.logs, training.saved
    steps, size, start = experiment.steps, experiment.data.batch, int(state.step)
    rows = sharding.local_rows(size, mesh)
    lay = functools.partial(sharding.global_batch, rows=rows, batch=size, mesh=mesh)
    step, skips = start, Skips(int(state.skipped_in_a_row), rows, experiment.objective.loss_weights)
    clock = SaveClock(experiment.checkpoint.minutes)
    for batch, lanes_after in training.watch.waiting(training.batches):
        if training.evaluate and logs.evaluated < step and due(step, experiment.evaluation.every, steps):
            with training.watch.measure(EVALUATION):
                # No variable holds the parameters: the step donates them, and merged LoRA parameters would stay in
                # memory.
                results = training.evaluate(
                    used_params(experiment, state.best_params, mesh),
                    training.stop.requested,
                    reference_params(experiment, state.params, state.reference),
                )
            if results is None:
                training.stop.agree()  # All processes have abandoned the evaluation.
            else:
                logs.write_evaluations(step, results)
            meter.restart()
        ending = step >= steps or out_of_patience(experiment, logs.history) or training.stop.at(step)
        evaluated = logs.evaluated == step
        best, forked = evaluated and experiment.checkpoint.best, training.forked and step == start
        timed = step > start and clock.due(due(step, experiment.log.every, steps))
        if ending or best or forked or timed or due(step, experiment.checkpoint.every, steps):
            clock.restart()
            trees = {**state.trees(), "lanes": lay({"lanes": lanes})}
            for skip in skips.rest():
                logs.write_skip(skip)
            with training.watch.measure(SAVING):
                logs.flush()  # A resumed run has the lines up to its checkpoint.
                saved.save(step, trees, logs.results if evaluated else None)
        if ending:
            break
        training.profile.before(step, state.step)
        with training.profile.step(step), training.watch.step():
            state, means = training.train(state, lay(batch))
            training.stop.harmless = None
            for skip in skips.add(step + 1, means, lanes):
                logs.write_skip(skip)
            step, lanes = step + 1, lanes_after
            meter.add(means)
        if ended := training.profile.after(step, means):
            logs.say(ended)
        logs.advance(step, meter)
        if due(step, experiment.log.every, steps):
            training.claim.check()
            logs.write(step, "train", meter.report(step, state))
            logs.sessions.progress(step, training.watch)
    return state


def finish(training: Training, state: TrainState) -> Run:
    """Ends a training: waits until its checkpoints are on disk, prints how it ended, and returns the run."""
    experiment, logs, saved, stop = training.experiment, training.logs, training.saved, training.stop
    folder, steps, step = training.claim.folder, experiment.steps, int(state.step)
    with training.watch.measure(SAVING):
        saved.wait()
    training.claim.check()
    stopped = stop.signal and (step < steps or (training.evaluate and logs.evaluated < step))
    how = f"stopped by {stop.signal}" if stopped else "ended early" if step < steps else "done"
    logs.sessions.end(step, training.watch, how)
    params, results = used_params(experiment, state.best_params, training.mesh), logs.results
    run = Run(folder, experiment, training.tokenizer, step, params, training.mesh)
    if experiment.checkpoint.best and logs.history:
        used, params = read_params(folder, experiment, training.mesh)
        run, results = dataclasses.replace(run, step=used, params=params), saved.results(used)
    if stopped:
        logs.say(f"{how} at step {step}, saved; run the same command to resume")
        logs.report()
        return dataclasses.replace(run, stopped=stop.signal)
    stop.harmless, stop.status = "after its last step", 0
    if step < steps:
        named = f"no better {experiment.checkpoint.best} in {experiment.evaluation.patience} evaluations"
        logs.say(f"{named}: ended at step {step}, the best was at {run.step}")
    logs.end(run, results)
    return run


def already_done(folder: Path, experiment: Experiment, step: int, shown: Display) -> Run:
    """Prints that the run has already done the requested number of steps. Returns the run as it is stored, without
    training it.
    """
    shown.say(
        f"--steps {experiment.steps}: the run in {folder} has done {step:,} already; nothing is trained or changed; "
        f"set more than {step:,} to continue"
    )
    return runs.open_run(folder, known=experiment)
