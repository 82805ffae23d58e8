"""Plans: refusals before anything is compiled, reports, and whole plans where compilers are installed."""

import dataclasses
import importlib.util
import io
import json

import jax
import pytest
import tiny
from rich.console import Console

import jaxformer as jf
from jaxformer import cli, config
from jaxformer.errors import InputError
from jaxformer.parallel import sharding
from jaxformer.planning import compiling, plans, report, topologies
from jaxformer.planning import notes as sharding_notes
from jaxformer.planning.plans import Memory, Plan
from jaxformer.planning.roofline import Roofline
from jaxformer.planning.traffic import Collective
from jaxformer.training.state import abstract_state

GIB = 2**30
BERT = tiny.ROOT / "configs" / "bert_base.py"


@pytest.mark.parametrize(
    ("topology", "overrides", "message"),
    [
        ("v5e:4x4", {"mesh.data": 4}, "mesh data 4 has 4 of the 16 devices of v5e:4x4: expected all of them"),
        ("v5e:4x4", {"mesh.data": 32}, "does not fit 16 device(s)"),
        (
            "v5e:4x4",
            {"mesh.fsdp": 1, "mesh.tensor": 16},
            "mesh.tensor=16 is larger than what it splits: the model's heads",
        ),
        ("v5e:4x4", {"data.batch": 24}, "data.batch=24 does not divide into 16 shares (mesh.data); 32 would"),
        ("v5e:4x4", {"data.batch": 32, "optimizer.accumulate": 4}, "does not divide into 16 shares (mesh.data) × 4"),
        ("2xv5e:4x4", {}, "mesh.slices=1: 2xv5e:4x4 has 2 slices; expected --mesh.slices 2"),
        ("v5e:4x4", {"mesh.slices": 2}, "mesh.slices=2: v5e:4x4 has 1 slice(s)"),
        ("v5e:5x4", {}, "Google offers no such slice"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(topology, overrides, message):
    with pytest.raises(InputError) as error:
        jf.plan(BERT, topology, {"model.vocab": 512, "model.transformer.depth": 2, **overrides})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_where_no_compiler_is_installed_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for topology, package in (("v5e:2x2", "libtpu"), ("h100:8", "jax_cuda12_plugin")):
        assert cli.main(["plan", str(BERT), "--topology", topology]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == (
            f"jaxformer: --topology {topology}: {package}, which has the compiler, is not installed: "
            "pip install 'jaxformer[plan]'"
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "plan: expected a config file first"),
        (["--topology", "v5e:2x2"], "plan: expected a config file first"),
        (["bert_base"], "plan: the following arguments are required: --topology"),
        (["bert_base", "--topology", "v5e:2x2", "--price", "-1"], "--price -1: expected the price of one device"),
        (["bert_base", "--topology", "v5e:2x2", "--price", "cheap"], "plan: argument --price: invalid float value"),
        (["no_config", "--topology", "v5e:2x2"], "no_config"),
        (["bert_base", "--topology", "v5e:2x2", "--model.widht", "3"], "--model.widht"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, message, capsys):
    assert cli.main(["plan", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_help_says_what_there_is(capsys):
    assert cli.main(["plan", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--price" in shown and "v5p:4x4x4" in shown and "h100:64" in shown


def test_the_state_of_a_device_is_its_share_of_all_arrays():
    experiment = config.load(BERT, {"model.transformer.depth": 2, "mesh": sharding.Mesh(1, 8)})
    mesh = sharding.make_mesh(experiment.mesh)
    memory = plans.state_memory(experiment, topologies.parse("v5e:2x4"), mesh)
    whole = sum(4 * leaf.size for leaf in jax.tree.leaves(abstract_state(experiment, mesh).params))
    assert whole / 8 <= memory.params < whole / 7, "all but a few small arrays is split"
    assert memory.optimizer == pytest.approx(2 * memory.params, rel=0.01), "Adam has two moments"
    assert memory.batch > 0 and memory.capacity == 16 * GIB and memory.host == 0
    offloaded = config.override(experiment, {"optimizer.offload": True})
    other = plans.state_memory(offloaded, topologies.parse("v5e:2x4"), mesh)
    assert other.host + other.optimizer == memory.optimizer and other.optimizer < 100, "all but the counts of updates"
    assert (other.params, other.batch) == (memory.params, memory.batch)


def test_messages_of_the_compiler_are_read():
    short = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.42G of 15.75G hbm. Exceeded by 4.67G."
    long = "the total memory required for HLO temporaries (20.42G) exceeds available HBM (15.75G)."
    for message in (short, long):
        assert compiling.memory_of(message, 16 * GIB) == pytest.approx((20.42 * GIB, 15.75 * GIB))
    assert compiling.memory_of("RESOURCE_EXHAUSTED", 16 * GIB) == (0.0, 16 * GIB)


@pytest.fixture
def made():
    """A plan with figures that were made up."""
    experiment = config.load(BERT, {"steps": 1000})
    topology = topologies.parse("h100:16")
    memory = Memory(80 * GIB, 73 * GIB, params=1 * GIB, optimizer=2 * GIB, batch=1000.0, peak=30 * GIB)
    sent = Collective("all-gather", 1e9, 12.0, topology.reach([(0, (0,)), (0, (1,)), (1, (0,)), (1, (1,))]))
    mesh = {"slices": 1, "data": 2, "pipeline": 1, "fsdp": 8, "expert": 1, "sequence": 1, "tensor": 1}
    times = Roofline(products=0.5, memory=0.2, fast=0.1, slow=0.2)
    return Plan(experiment, topology, mesh, memory, 3e15, 4e15, (sent,), 1e11, times, 2.0, notes=("of interest",))


def test_notes_say_when_fsdp_pads_shards_or_has_all_devices_of_a_tpu(made):
    topology = topologies.parse("v5e:8x8")

    def notes(fsdp, kinds, width=768, topology=topology):
        shape = {"width": width, "depth": 2, "heads": 4}
        overrides = {f"model.transformer.{name}": value for name, value in shape.items()} | {"model.vocab": 1000}
        experiment = config.load(BERT, overrides)
        reach = dataclasses.replace(made.collectives[0].reach, size=fsdp)
        sent = [Collective(kind, 1e9, 1.0, reach) for kind in kinds]
        mesh = jax.sharding.AbstractMesh((64 // fsdp, fsdp), ("data", "fsdp"))
        return sharding_notes.notes(experiment, topology, mesh, sent)

    (padded, reduced) = notes(64, ["all-reduce"])
    assert "mesh.fsdp=64: no dimension of 43% of the parameters" in padded and "multiple of 8 rows" in padded
    assert "--mesh.data 2 --mesh.fsdp 32 sends about half as much" in reduced
    assert notes(64, ["all-gather", "reduce-scatter", "all-reduce"], width=1024) == []
    assert notes(32, ["all-reduce"], width=1024) == []
    assert notes(64, ["all-reduce"], topology=topologies.parse("h100:64")) == []


def printed(plan):
    console = Console(record=True, width=200, file=io.StringIO())
    report.print_plan(plan, console)
    return console.export_text()


def test_a_plan_is_printed_for_people(made):
    shown = printed(made)
    assert "h100:16: 16 devices · mesh data 2 × fsdp 8 · batch 256 rows, 131,072 tokens · remat dots" in shown
    assert "fits: 30.0 of 80.0 GiB a device (38%)" in shown
    assert "parameters 1.00 GiB · optimizer 2.00 GiB" in shown and "activations and temporaries 27.0 GiB" in shown
    assert "3.0 PFLOP a step; 33% more in the program, much of it computed again" in shown
    assert "all-gather     12  24.000      12.000" in shown
    assert "matrix products 500 ms · device memory 200 ms · NVLink 100 ms · InfiniBand 200 ms" in shown
    assert "500 ms if all of it overlaps, 1.00 s if nothing does: 131,072–262,144 tokens/s, MFU 19–38%" in shown
    assert "1,000 steps: 8.3–16.7 minutes, 2–4 device-hours, at 2.00 an hour 4–9" in shown
    assert "note: of interest" in shown and "compared with a chip yet" in shown


def test_an_optimizer_state_in_host_memory_is_listed_apart_from_the_device(made):
    memory = dataclasses.replace(made.memory, optimizer=0.0, host=2 * GIB, peak=29 * GIB)
    plan = dataclasses.replace(made, memory=memory)
    shown = printed(plan)
    assert "parameters 1.00 GiB · optimizer 0.0 KiB" in shown and "activations and temporaries 28.0 GiB" in shown
    assert "in host memory, for each device: optimizer 2.00 GiB" in shown
    assert report.plan_json(plan)["bytes_a_device"]["in_host_memory"] == 2 * GIB


def test_a_plan_is_json_for_programs(made):
    found = json.loads(json.dumps(report.plan_json(made)))
    assert found["fits"] and found["mesh"]["fsdp"] == 8 and found["topology"]["slow_network"] == "InfiniBand"
    assert found["bytes_a_device"]["activations_and_temporaries"] == 27 * GIB - 1000
    assert found["collectives"]["all-gather"] == {"times": 12, "fast_network": 24e9, "slow_network": 12e9}
    assert found["seconds_a_step"]["shortest"] == 0.5 and found["seconds_a_step"]["longest"] == 1.0
    assert found["tokens_a_second"]["longest"] == 256 * 512 and found["mfu"]["shortest"] == pytest.approx(
        0.379, abs=0.001
    )
    assert found["price"]["longest"] == pytest.approx(1000 * 16 / 3600 * 2)


@pytest.mark.parametrize(
    ("peak", "refused", "verdict"),
    [
        (70, False, "fits with XLA_PYTHON_CLIENT_MEM_FRACTION=0.92: 70.0 of 80.0 GiB a device (88%)"),
        (75, False, "does not fit: 75.0 of 80.0 GiB a device (94%), and 73.0 GiB can be used"),
        (90, True, "does not fit: the compiler needs at least 90.0 of 73.0 GiB a device"),
        (0, True, "does not fit: the compiler needs more than 73.0 GiB a device"),
    ],
)
def test_what_does_not_fit_says_by_how_much(made, peak, refused, verdict):
    memory = dataclasses.replace(made.memory, peak=peak * GIB, refused=refused)
    changed = dataclasses.replace(made, memory=memory, roofline=None if refused else made.roofline)
    assert report.verdict(changed) == verdict
    assert changed.memory.fits == verdict.startswith("fits")
    assert verdict in printed(changed)
    assert ("seconds_a_step" in report.plan_json(changed)) is not refused


@pytest.fixture(params=["v5e:2x2", "h100:8", "b200:8"])
def topology(request):
    found = topologies.parse(request.param)
    try:
        compiling.check_compiler(found)
    except InputError as error:
        pytest.skip(str(error))
    return found


KINDS = ("gpt_quickstart", "bert_quickstart", "translation_quickstart", "vit_digits", "clip_emoji")


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_config_of_each_kind_is_planned(topology, name):
    compiling.prepare()
    experiment = config.load(tiny.ROOT / "configs" / f"{name}.py", {"mesh": sharding.Mesh(2, -1), "data.batch": 16})
    experiment = dataclasses.replace(experiment, model=tiny.shallow(experiment.model, 2))
    plan = jf.plan(experiment, topology, price=3.0)
    assert plan.memory.fits and 0 < plan.memory.params < plan.memory.peak < GIB
    assert plan.roofline is not None and plan.roofline.fast > 0 and plan.roofline.slow == 0
    assert 0.9 < plan.flops / plan.model_flops < 2.5
    assert 0 < plan.utilization(plan.roofline.shortest) <= 1
    assert {"all-reduce"} <= {one.kind for one in plan.collectives}
    assert plan.notes == ()
    assert "device-hours" in printed(plan)


@pytest.mark.slow
def test_a_step_that_is_too_large_does_not_fit():
    topology = topologies.parse("v5e:2x2")
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: it compiles for TPUs (pip install '.[plan]')")
    experiment = config.load(tiny.ROOT / "configs" / "gpt2_small.py", {"model.transformer.remat": "none"})
    plan = jf.plan(experiment, topology)
    assert not plan.memory.fits and plan.memory.refused and plan.memory.peak > plan.memory.usable > 15 * GIB
    assert plan.roofline is None and plan.collectives == ()
    assert "does not fit: the compiler needs at least" in printed(plan)
