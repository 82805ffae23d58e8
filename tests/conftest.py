"""Eight simulated devices and quick compilation, for all tests: set before anything imports jax."""

import gc
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

# No test depends on the speed of the machine.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Compiling is most of a test's time, and the code that LLVM optimises less is quick enough for tiny models.
QUICK = ("--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true")
OLD_FUSIONS = "--xla_cpu_use_fusion_emitters=false"
"""Fusions are compiled in about 60% of the time by the older code, which a later XLA may not have."""


def quick_flags():
    """Options of XLA for quick compilation. XLA ends a process that gives it an option that it does not have."""
    script = "from jax.extend.backend import get_backend; get_backend('cpu')"
    environment = os.environ | {"XLA_FLAGS": OLD_FUSIONS, "JAX_PLATFORMS": "cpu"}
    known = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
    return [*QUICK, OLD_FUSIONS] if known.returncode == 0 else [*QUICK]


if QUICK[0] not in os.environ.get("XLA_FLAGS", ""):  # The workers of pytest-xdist inherit it.
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", *quick_flags()]
    os.environ["XLA_FLAGS"] = " ".join(flags)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Traced programs are millions of small objects, which live as long as the process: most collections find nothing.
gc.set_threshold(50_000, 20, 20)

MAPS, MOST_MAPS = Path("/proc/self/maps"), 20_000


TORCH = importlib.util.find_spec("torch") is not None
"""Whether PyTorch is there, with transformers (extra `test`), or not (extra `test_without_torch`)."""
NEEDS_TORCH = re.compile(
    r"^(?:import|from) (?:torch|transformers|safetensors|hf_models|hf_weights|decoding_models)\b", re.M
)


LONG = (
    "test_configs",
    "test_docs",
    "test_faults",
    "test_drills",
    "test_experts",
    "test_pipeline",
    "test_onnx",
    "test_sharding",
    "test_state_shardings",
    "test_evaluation_processes",
    "test_runs",
    "test_launch",
    "test_certificate",
    "test_decoding",
    "test_finetuning",
    "test_sequence",
    "test_whisper_weights",
    "test_families",
    "test_modern_bert",
    "test_mfu",
)
"""Files that take a minute or more, with the longest first: the last ones of a run should be short."""


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


def pytest_make_parametrize_id(val):
    """Names bytes by their number: workers must collect the same names, and encoders write the time into a file."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


@pytest.hookimpl(trylast=True)  # The reporter is there only then.
def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # By the number of their tests, files with few long ones would be last.
    if reporter := config.pluginmanager.get_plugin("terminalreporter"):
        config.pluginmanager.register(FailureLines(reporter))


class FailureLines:
    """Prints one line for each failed test at once, so that a run that is stopped early shows its failures."""

    def __init__(self, reporter):
        self.reporter = reporter

    def pytest_runtest_logreport(self, report):
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = crash.message.partition("\n")[0] if crash else str(report.longrepr).strip().rpartition("\n")[2]
            self.reporter.write_line(f" FAILED {report.nodeid} ({report.when}): {message[:200]}")


def pytest_ignore_collect(collection_path):
    """Leaves out the files that import PyTorch if it is not there."""
    if not TORCH and collection_path.suffix == ".py" and NEEDS_TORCH.search(collection_path.read_text("utf-8")):
        return True


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Drops compiled programs before they are too many: each takes a few of the 65,530 memory maps that Linux gives a
    process, and XLA crashes without them."""
    yield
    if "jax" in sys.modules and MAPS.exists() and len(MAPS.read_bytes().splitlines()) > MOST_MAPS:
        sys.modules["jax"].clear_caches()


@pytest.fixture(autouse=True, scope="module")
def no_variables_of_a_cluster():
    """Removes variables that the tests of a file have left, because processes of later tests would wait for others."""
    yield
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    left = {name: os.environ.pop(name) for name in names if name in os.environ}
    assert not left


@pytest.fixture(autouse=True)
def no_lines_of_slow_phases(monkeypatch):
    """Makes the output independent of the machine's speed."""
    monkeypatch.setattr("jaxformer.progress.SILENCE", 600)


@pytest.fixture(scope="module", params=["gcs", "s3"])
def any_bucket(request):
    """A server of either protocol of object stores, used by this process and those that it starts."""
    import object_stores

    with getattr(object_stores, request.param)() as server, object_stores.used_by_this_process(server):
        yield server


@pytest.fixture
def bucket(any_bucket):
    """The same without faults and without objects."""
    any_bucket.faults.clear()
    any_bucket.empty()
    yield any_bucket
    any_bucket.faults.clear()


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory):
    """The config file of a tiny run on generated text; compiled programs are shared with the processes of a test."""
    import jax
    import tiny

    home = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(home)
    jax.config.update("jax_compilation_cache_dir", str(home / "jaxformer" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))
