"""The search: which candidates there are, in which order they are compiled, and why each loses."""

import dataclasses
import io
import json
import math
import random
import types

import pytest
import tiny
from rich.console import Console

import jaxformer as jf
from jaxformer import cli, config
from jaxformer.errors import InputError
from jaxformer.parallel.sharding import Mesh
from jaxformer.planning import compiling, plans, search, topologies
from jaxformer.planning.candidates import Candidate, candidates, meshes, powers
from jaxformer.planning.formulas import Formulas
from jaxformer.planning.plans import Memory, Plan
from jaxformer.planning.roofline import Roofline
from jaxformer.planning.search import Ranked, rank
from jaxformer.planning.search_report import print_search, search_json

GIB = 2**30
BERT = config.load(tiny.ROOT / "configs" / "bert_base.py", {"model.transformer.depth": 2})
V5E = topologies.parse("v5e:4x4")
GPT = tiny.ROOT / "configs" / "gpt2_small.py"
ROWS_OF_32K = {"data.task.length": 32_768, "model.max_length": 32_768}
LONG = config.load(GPT, {**ROWS_OF_32K, "data.batch": 4, "model.transformer.depth": 8})
"""Four rows of 32,768 tokens."""
DEEP = config.load(GPT, {"data.batch": 16, "optimizer.accumulate": 1})
"""Twelve blocks and little batch."""
EXPERTS = config.load(tiny.ROOT / "configs" / "moe_quickstart.py", {"model.vocab": 512})
"""Eight experts in each block."""


def candidate(data=1, fsdp=16, tensor=1, remat="none", micro=1):
    return Candidate(Mesh(data, fsdp, tensor), remat, micro)


def test_every_mesh_of_powers_of_two_fills_the_topology():
    assert powers(12) == [1, 2, 4, 8]
    for name, tensors in (("v5e:4x4", {1, 2, 4, 8, 16}), ("h100:16", {1, 2, 4, 8}), ("2xv5e:2x2", {1, 2, 4})):
        topology = topologies.parse(name)
        found = list(candidates(BERT, topology))
        assert len({one.label for one in found}) == len(found)
        assert {one.mesh.tensor for one in found} == tensors
        for one in found:
            assert math.prod(one.mesh.sizes(topology.size).values()) == topology.size
            assert one.mesh.slices == (2 if name.startswith("2x") else 1)


def test_axes_are_tried_where_the_model_and_its_rows_can_use_them():
    def sizes(experiment, axis):
        return {getattr(mesh, axis) for mesh in meshes(experiment, topologies.parse("v5e:8x8"))}

    assert sizes(BERT, "sequence") == sizes(BERT, "expert") == {1}, "rows of 512 tokens, and no experts"
    assert sizes(BERT, "pipeline") == {1, 2}, "two blocks"
    assert sizes(LONG, "sequence") == {1, 2, 4, 8, 16, 32} and sizes(LONG, "pipeline") == {1, 2, 4, 8}
    assert sizes(EXPERTS, "expert") == {1, 2, 4, 8}
    assert [mesh for mesh in meshes(LONG, V5E) if mesh.sequence > 1 and mesh.pipeline > 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["long", "experts", "deep"])
def test_what_may_run_passes_the_checks_of_a_plan(name):
    experiment = {"long": LONG, "experts": EXPERTS, "deep": DEEP}[name]
    formulas = Formulas(experiment, V5E, model_flops=1e15)
    able = [one for one in map(formulas.scheduled, candidates(experiment, V5E)) if not formulas.problem(one)]
    some = random.Random(0).sample(able, 4)
    axis = {"long": "sequence", "experts": "expert", "deep": "pipeline"}[name]
    assert {getattr(one.mesh, axis) > 1 for one in some} == {True, False}
    for one in some:
        plans.check(one.applied(experiment), V5E)


def test_what_cannot_run_on_the_other_axes_is_said():
    def problem(experiment, micro=1, **sizes):
        return Formulas(experiment, V5E, model_flops=1e15).problem(Candidate(Mesh(1, **sizes), "none", micro))

    assert "depth=12 does not divide into 8 parts" in problem(DEEP, pipeline=8, fsdp=2)
    assert problem(DEEP, pipeline=2, fsdp=8, micro=2) == (
        "the batch of 16 does not divide into 8 shares × 2 micro-batches of the pipeline × 2 micro-batches"
    )
    assert "mesh.expert=16 does not divide mlp.experts=8" in problem(EXPERTS, expert=16)
    assert "mesh.expert=2: the model has no experts" in problem(DEEP, expert=2, fsdp=8)


def test_a_candidate_is_applied_as_its_flags_are():
    chosen = candidate(2, 4, 2, "full", 4)
    applied = chosen.applied(BERT)
    flags = chosen.flags(BERT)
    assert flags == (
        "--mesh.data 2 --mesh.fsdp 4 --mesh.tensor 2 --model.transformer.remat full --optimizer.accumulate 4"
    )
    words = flags.replace("--", "").split()
    overrides = dict(zip(words[::2], words[1::2], strict=True))
    assert config.override(BERT, overrides) == applied
    glue = config.load(tiny.ROOT / "configs" / "bert_base_glue.py")
    assert "--model.backbone.transformer.remat full" in chosen.flags(glue)


def test_flags_also_undo_what_the_experiment_sets():
    piped = config.override(DEEP, {"mesh": Mesh(1, pipeline=4, pipeline_microbatches=8, pipeline_repeats=3)})
    chosen = [Candidate(Mesh(2, 8), "none", 1)]
    chosen += [Candidate(Mesh(2, 2, pipeline=4, pipeline_microbatches=number), "dots", 2) for number in (4, 8)]
    for one in chosen:
        words = one.flags(piped).replace("--", "").split()
        overrides = dict(zip(words[::2], words[1::2], strict=True))
        assert config.override(piped, overrides) == one.applied(piped)
    assert "--mesh.pipeline 4 --mesh.pipeline_microbatches 8 " in chosen[-1].flags(DEEP)
    assert "pipeline 4 × fsdp 2 (pipeline: 8 micro-batches), remat dots" in chosen[-1].label


def test_what_splits_and_computes_again_less_needs_at_least_as_much():
    fails = candidate(2, 8, 1, "dots", 2)
    assert candidate(2, 8, 1, "none", 1).needs_at_least(fails) and candidate(4, 4, 1, "dots", 2).needs_at_least(fails)
    for fits in (candidate(2, 8, 1, "full", 2), candidate(2, 8, 1, "dots", 4), candidate(1, 16, 1, "dots", 2)):
        assert not fits.needs_at_least(fails)
    assert not candidate(1, 8, 2, "dots", 2).needs_at_least(fails), "another way to split matrices"
    for axis in ("sequence", "expert", "pipeline"):
        other = Candidate(dataclasses.replace(candidate(1, 8).mesh, **{axis: 2}), "dots", 2)
        assert not other.needs_at_least(fails) and not fails.needs_at_least(other)


@pytest.fixture(scope="module")
def formulas():
    return Formulas(BERT, V5E, model_flops=1e15)


def test_what_cannot_run_is_said(formulas):
    assert formulas.problem(candidate()) is None
    assert formulas.problem(candidate(2, 1, 8)) == "tensor 8 does not divide the heads of 12"
    assert formulas.problem(candidate(16, 1, 1, micro=3)) == (
        "the batch of 256 does not divide into 16 shares × 3 micro-batches"
    )


def test_formulas_know_what_splits_and_what_is_sent(formulas):
    whole, split = candidate(16, 1), candidate(1, 16)
    ratio = formulas.state_bytes(whole) / formulas.state_bytes(split)
    assert 15 < ratio <= 16
    again = formulas.roofline(candidate(remat="full"))
    assert again.products == pytest.approx(4 / 3 * formulas.roofline(split).products)
    assert formulas.roofline(candidate(micro=4)).fast == pytest.approx(4 * formulas.roofline(split).fast)
    assert formulas.roofline(candidate(1, 4, 4)).fast > formulas.roofline(split).fast, "activations are sent too"
    kept = {remat: formulas.activation_bytes(candidate(remat=remat)) for remat in ("none", "full")}
    assert kept["full"] == 2 * 2 * 16 * 512 * 768 and kept["none"] > 4 * kept["full"]
    slices = Formulas(BERT, topologies.parse("2xv5e:2x2"), model_flops=1e15)
    assert slices.roofline(Candidate(Mesh(1, 4, 1, slices=2), "none", 1)).slow > 0 == formulas.roofline(split).slow


def test_formulas_know_what_the_other_axes_send_and_how_long_stages_wait():
    sized = {"long": LONG, "deep": DEEP, "experts": EXPERTS}
    known = {name: Formulas(experiment, V5E, model_flops=1e15) for name, experiment in sized.items()}

    def one(**fields):
        return Candidate(Mesh(1, **fields), "none", 1)

    ring = known["long"].sent(one(sequence=4, fsdp=4))["sequence"]
    keys, gradients = 2 * 768, 4 + 2 * 2  # Keys and values of a layer, and bytes of them and of their gradients.
    parameters = known["long"].sent(one(sequence=4, fsdp=4))["fsdp"] / 4
    assert ring == pytest.approx(8 * keys * gradients * 32_768 + parameters)
    assert known["long"].activation_bytes(one(sequence=4, fsdp=4)) == known["long"].activation_bytes(one(fsdp=4)) / 4

    alone, stages = known["deep"].roofline(one(fsdp=16)), known["deep"].roofline(one(fsdp=4, pipeline=4))
    assert stages.products == pytest.approx(alone.products * 7 / 4), "four micro-batches in seven ticks"
    more = known["deep"].roofline(one(fsdp=4, pipeline=4, pipeline_microbatches=16))
    assert more.products == pytest.approx(alone.products * 19 / 16)
    vectors = 2 * 1 * 1024 * 768  # One row of a micro-batch, in bfloat16.
    # Gradients of the tied table, in float32 for each use, and of positions and the last norm, in bfloat16.
    outside = 2 * 768 / 4 * (2 * 4 * 50_304 + 2 * (1024 + 2))
    passed = known["deep"].sent(one(fsdp=4, pipeline=4))["pipeline"]
    assert passed == pytest.approx(vectors * (2 * 7 * 4 / 3 + 4 * 4) + outside)

    split, whole = (known["experts"].sent(one(expert=8, fsdp=2)), known["experts"].sent(one(fsdp=16)))
    tokens = 2 * 128 * 128 * 2  # Of a row: to experts and back.
    assert split["expert"] > 4 * 2 * 8 * tokens and whole["expert"] == 0


def made(chosen, peak, seconds, topology=V5E):
    memory = Memory(16 * GIB, 16 * GIB, GIB, GIB, 0.0, peak * GIB)
    times = Roofline(seconds, 0.0, seconds / 10, 0.0)
    mesh = chosen.mesh.sizes(topology.size)
    return Plan(chosen.applied(BERT), topology, mesh, memory, 1e12, 1e12, roofline=times)


def test_each_that_loses_says_why():
    fast, slow = candidate(), candidate(remat="full")
    tried = [Ranked(one, made(one, 8, time).roofline, made(one, 8, time)) for one, time in ((slow, 4.0), (fast, 3.0))]
    guess = [
        Ranked(candidate(2, 8), Roofline(3.0, 0, 1.0, 0), None),
        Ranked(candidate(4, 4), Roofline(3.0, 0, 9.0, 0), None),
    ]
    lost = Ranked(candidate(1, 8, 2), None, None, "tensor 2 does not divide the heads of 3")
    ranking = rank(tried, guess, [lost])
    assert [one.candidate for one in ranking] == [fast, slow, guess[0].candidate, guess[1].candidate, lost.candidate]
    assert [one.loses for one in ranking] == [
        "",
        "1.33 times the time: more computed again, 4.00 s against 3.00 s",
        "not compiled: by formulas the next to try",
        "not compiled: by formulas 3.00 times the time: more communication, 9.00 s against 1.00 s",
        "tensor 2 does not divide the heads of 3",
    ]
    stages = Candidate(Mesh(1, 4, pipeline=4), "none", 1)
    waits = Ranked(stages, Roofline(5.0, 0, 1.0, 0), None)
    assert rank(tried, [guess[0], waits], [])[-1].loses == (
        "not compiled: by formulas 1.57 times the time: stages of the pipeline wait longer, 5.00 s against 3.00 s"
    )
    refused = dataclasses.replace(lost, plan=types.SimpleNamespace())
    assert rank([], guess, [refused])[-1].loses == "was not compiled; --compiled says how many are"
    formulas = rank([], guess, [lost])  # Nothing was compiled.
    assert [one.candidate for one in formulas] == [*(one.candidate for one in guess), lost.candidate]
    assert [one.loses for one in formulas[:2]] == ["", "3.00 times the time: more communication, 9.00 s against 1.00 s"]


@pytest.fixture
def without_compilers(monkeypatch):
    """Plans whose memory and time follow from the candidate, and the candidates that were planned."""
    planned = []

    def compiled_plan(experiment, topology, price=None):
        remat = next(iter(experiment.model.stacks().values())).remat
        planned.append((remat, experiment.mesh, experiment.optimizer.accumulate))
        peak = {"none": 40, "dots": 20, "full": 10}[remat] / experiment.optimizer.accumulate
        chosen = Candidate(experiment.mesh, remat, experiment.optimizer.accumulate)
        return dataclasses.replace(made(chosen, peak, 1.0 + len(planned), topology), price=price)

    monkeypatch.setattr(compiling, "check_compiler", lambda topology: None)
    monkeypatch.setattr(plans, "compiled_plan", compiled_plan)
    return planned


def test_what_needs_more_than_what_does_not_fit_is_not_compiled(without_compilers):
    found = jf.search_plans(BERT, "v5e:4x4", compiled=5)
    assert len(without_compilers) == 5 == sum(one.plan is not None for one in found.ranking)
    assert (
        found.best
        and found.best.plan
        and found.best.plan.memory.fits
        and found.best.candidate.flags(BERT) == found.flags
    )
    fits = [one for one in found.ranking if one.plan and one.plan.memory.fits]
    assert fits[0] is found.best and sorted(fits, key=lambda one: one.estimate.middle) == fits
    pruned = [one for one in found.ranking if "needs no less than" in one.loses]
    assert pruned and all(one.plan is None for one in pruned)
    assert all(one.loses for one in found.ranking[1:]) and not found.ranking[0].loses
    assert len({one.candidate for one in found.ranking}) == len(found.ranking) == len(list(candidates(BERT, V5E)))


def test_long_rows_rank_meshes_that_split_them(without_compilers):
    found = jf.search_plans(LONG, V5E, {"data.batch": 2}, compiled=100)
    estimated = [one for one in found.ranking if one.estimate]
    assert estimated and all(one.candidate.mesh.sequence > 1 or one.candidate.mesh.pipeline > 1 for one in estimated)
    assert found.best is not None and f"--mesh.sequence {found.best.candidate.mesh.sequence}" in found.flags
    without = [one.loses for one in found.ranking if one.candidate.mesh.sequence == one.candidate.mesh.pipeline == 1]
    assert all("does not divide" in loses for loses in without)
    assert [one for one in estimated if one.candidate.mesh.sequence > 1 and one.candidate.mesh.pipeline > 1]
    more = [one.candidate.mesh.sequence for one in jf.search_plans(LONG, V5E, compiled=1).ranking if one.estimate]
    assert {1, 2, 4} <= set(more)


def test_a_deep_model_with_little_batch_considers_pipelines(without_compilers):
    found = jf.search_plans(DEEP, "h100:32", {"data.batch": 32}, compiled=20)
    stages = [one for one in found.ranking if one.estimate and one.candidate.mesh.pipeline > 1]
    assert {one.candidate.mesh.pipeline for one in stages} == {2, 4}
    assert len({one.candidate.schedule for one in stages}) > 3
    assert found.best is not None and all("by formulas" in one.loses for one in stages if not one.plan)
    assert any("depth=12 does not divide into 8 parts" in one.loses for one in found.ranking)


def test_a_search_is_printed_and_is_json(without_compilers, capsys):
    found = jf.search_plans(BERT, V5E, price=1.0, compiled=6)
    console = Console(record=True, width=250, file=io.StringIO())
    print_search(found, console)
    shown = console.export_text()
    assert f"{len(found.ranking)} candidates, 6 compiled" in shown and f"flags: {found.flags}" in shown
    assert "the best" in shown and "device-hours" in shown
    written = json.loads(json.dumps(search_json(found)))
    assert written["flags"] == found.flags and len(written["ranking"]) == len(found.ranking)
    assert written["best"]["fits"] and written["ranking"][0]["compiled"]


def test_where_nothing_that_was_compiled_fits_the_search_says_so(without_compilers, capsys):
    found = jf.search_plans(BERT, V5E, compiled=1)
    assert found.best is None and found.flags == ""
    console = Console(record=True, width=250, file=io.StringIO())
    print_search(found, console)
    assert "nothing that was compiled fits" in console.export_text()


def test_without_compiling_the_formulas_rank(monkeypatch):
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)  # There is no compiler.
    found = jf.search_plans(BERT, V5E, compiled=0)
    times = [one.estimate.middle for one in found.ranking if one.estimate is not None]
    assert len(times) > 1 and times == sorted(times) and found.best is None
    assert found.ranking[0].loses == "" and "times the time" in found.ranking[1].loses


def test_bad_searches_are_refused_in_one_line(without_compilers, capsys):
    with pytest.raises(InputError, match="--compiled -1: expected at least 0"):
        jf.search_plans(BERT, V5E, compiled=-1)
    with pytest.raises(InputError, match="--search: no way to run it on v5e:4x4: the batch of 7 does not divide"):
        jf.search_plans(BERT, V5E, {"data.batch": 7})
    assert cli.main(["plan", "bert_base", "--topology", "v5e:4x4", "--search", "--compiled", "x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "argument --compiled: invalid int value" in line


@pytest.mark.slow
def test_a_search_with_a_compiler_finds_flags_that_fit(capsys):
    try:
        compiling.check_compiler(topologies.parse("h100:4"))
    except InputError as error:
        pytest.skip(str(error))
    experiment = config.load(tiny.ROOT / "configs" / "gpt_quickstart.py", {"model.transformer.depth": 2})
    found = search.search_plans(experiment, "h100:4", compiled=2)
    assert found.best is not None and "--mesh.fsdp" in found.flags
    assert all(one.loses for one in found.ranking[1:])
