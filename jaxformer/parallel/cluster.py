"""Where a process is among the processes of a run: from flags, from variables, or from the cluster that started it.

JAX knows TPU pods, Slurm and Open MPI (`jax._src.clusters`), which are asked here. What it lacks is read from the
variables of PyTorch's launchers, of SkyPilot and of indexed jobs of Kubernetes, which need no access to its API. A
process that is alone asks nothing: a look at the environment is all that it pays.
"""

import dataclasses
import glob
import importlib.util
import os
import re
from collections.abc import Callable, Mapping

from jaxformer.errors import InputError

ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
FLAGS = {"coordinator": ADDRESS, "processes": COUNT, "process": NUMBER}
"""The flags that say where a process is, and the variables that say the same."""
PORT = 8476
"""The coordinator's port, where none is given."""

Environment = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Place:
    """A process among the processes of a run."""

    coordinator: str
    """`HOST:PORT`, where process 0 listens."""
    processes: int
    """The number of processes."""
    process: int
    """The number of this one, from 0."""
    gpus: tuple[int, ...] | None = None
    """Its GPUs among those that it sees; None: all of them."""

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port of the coordinator."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def is_local(self) -> bool:
        """Whether all processes are on this host, which the coordinator's address says."""
        return self.address[0] in ("localhost", "127.0.0.1", "::1")

    def __str__(self) -> str:
        return f"process {self.process} of {self.processes}"


def find(environ: Environment = os.environ, wait: float = 300) -> Place | None:
    """The place of this process; None if it is the only one.

    Args:
      environ: the variables to read.
      wait: seconds that a TPU pod's coordinator may take to have an address.

    Raises:
      InputError: the variables are incomplete or contradict each other.
    """
    given = {flag: environ[name] for flag, name in FLAGS.items() if environ.get(name)}
    if given.keys() == FLAGS.keys() or given.get("processes") == "1":
        return _checked(given)
    # A TPU comes first: the order of its devices is that of its hosts.
    found = _on_tpu(environ, wait) or next(filter(None, (look(environ) for look in _CLUSTERS)), None)
    if found is None and not given:
        return None
    found = found or _Found()
    return _checked({**found.known(), **given}, found.gpus)


@dataclasses.dataclass(frozen=True)
class _Found:
    """A place as far as a cluster says it; None where it does not."""

    coordinator: str | None = None
    processes: str | None = None
    process: str | None = None
    gpus: tuple[int, ...] | None = None

    def known(self) -> dict[str, str]:
        values = {"coordinator": self.coordinator, "processes": self.processes, "process": self.process}
        return {flag: value for flag, value in values.items() if value is not None}


def _checked(given: dict[str, str], gpus: tuple[int, ...] | None = None) -> Place | None:
    """The place that these values of flags give; None for a single process."""
    numbers = {}
    for flag in ("processes", "process"):
        if flag in given:
            if not given[flag].isdecimal():
                raise InputError(f"--{flag} {given[flag]}: expected a number")
            numbers[flag] = int(given[flag])
    if numbers.get("processes") == 1 and numbers.get("process", 0) == 0:
        return None
    missing = [f"--{flag} ({FLAGS[flag]})" for flag in FLAGS if flag not in given]
    if missing:
        said = ", ".join(f"--{flag} {value}" for flag, value in given.items())
        raise InputError(f"{said}: expected {' and '.join(missing)} too, as no cluster says it")
    coordinator, processes, process = given["coordinator"], numbers["processes"], numbers["process"]
    if not process < processes:
        raise InputError(f"--process {process}: expected 0 to {processes - 1}, as --processes is {processes}")
    if not re.search(r":\d+$", coordinator):
        coordinator = f"{coordinator}:{PORT}"
    if not re.fullmatch(r"(\[[\w:.%]+\]|[\w.-]+):\d{1,5}", coordinator):
        raise InputError(f"--coordinator {given['coordinator']}: expected HOST:PORT, such as 10.0.0.1:{PORT}")
    return Place(coordinator, processes, process, gpus)


def _on_slurm(environ: Environment) -> _Found | None:
    """A task of `srun`. The script of `sbatch` itself is none, although it has SLURM_NTASKS."""
    if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2 or "SLURM_PROCID" not in environ:
        return None
    from jax._src.clusters import SlurmCluster  # Reads os.environ.

    address = SlurmCluster.get_coordinator_address(None, environ.get("JAX_COORDINATOR_PORT"))
    here = _tasks_of_node(environ["SLURM_STEP_TASKS_PER_NODE"], int(environ["SLURM_NODEID"]))
    gpus = own_gpus(environ, int(environ["SLURM_LOCALID"]), here)
    return _Found(address, environ["SLURM_STEP_NUM_TASKS"], environ["SLURM_PROCID"], gpus)


def left_out(environ: Environment = os.environ) -> str:
    """A note for a process that is alone where a cluster has room for more; empty elsewhere."""
    tasks = environ.get("SLURM_NTASKS", "1")
    if tasks != "1" and "SLURM_PROCID" in environ and "SLURM_STEP_NUM_TASKS" not in environ and COUNT not in environ:
        return f"this is the script of a job of {tasks} tasks, not one of them: one process trains; srun starts all"
    return ""


def _tasks_of_node(counts: str, node: int) -> int:
    """The tasks on a node, of Slurm's list for all nodes, such as `8(x2),4`."""
    expanded = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
        expanded += [int(count)] * int(times or 1)
    return expanded[node]


def _on_open_mpi(environ: Environment) -> _Found | None:
    """A process of `mpirun`. Only Open MPI before 5 says where mpirun runs, which is where process 0 is expected."""
    if int(environ.get("OMPI_COMM_WORLD_SIZE", "1")) < 2:
        return None
    from jax._src.clusters import OmpiCluster

    port = environ.get("JAX_COORDINATOR_PORT")
    address = OmpiCluster.get_coordinator_address(None, port) if OmpiCluster.is_env_present() else None
    local, here = (int(environ[f"OMPI_COMM_WORLD_LOCAL_{name}"]) for name in ("RANK", "SIZE"))
    gpus = own_gpus(environ, local, here)
    return _Found(address, environ["OMPI_COMM_WORLD_SIZE"], environ["OMPI_COMM_WORLD_RANK"], gpus)


def _of_torch(environ: Environment) -> _Found | None:
    """A process of torchrun, or of an operator of Kubernetes that sets the same variables."""
    if int(environ.get("WORLD_SIZE") or 1) < 2 or not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= environ.keys():
        return None
    port = int(environ["MASTER_PORT"]) + ("TORCHELASTIC_RUN_ID" in environ)  # torchrun listens there itself.
    local, here = int(environ.get("LOCAL_RANK", "0")), int(environ.get("LOCAL_WORLD_SIZE", "1"))
    address = f"{environ['MASTER_ADDR']}:{port}"
    return _Found(address, environ["WORLD_SIZE"], environ["RANK"], own_gpus(environ, local, here))


def _on_sky_pilot(environ: Environment) -> _Found | None:
    """The process of a node of SkyPilot."""
    nodes = environ.get("SKYPILOT_NODE_IPS", "").split()
    if len(nodes) < 2 or "SKYPILOT_NODE_RANK" not in environ:
        return None
    return _Found(f"{nodes[0]}:{PORT}", str(len(nodes)), environ["SKYPILOT_NODE_RANK"])


def _of_indexed_job(environ: Environment) -> _Found | None:
    """A pod of an indexed job of Kubernetes, such as those of a JobSet: it only knows its own number."""
    if "JOB_COMPLETION_INDEX" not in environ or ADDRESS not in environ:
        return None
    return _Found(process=environ["JOB_COMPLETION_INDEX"])


_CLUSTERS: tuple[Callable[[Environment], _Found | None], ...] = (
    _on_slurm,
    _on_open_mpi,
    _of_torch,
    _on_sky_pilot,
    _of_indexed_job,
)


def _on_tpu(environ: Environment, wait: float) -> _Found | None:
    """A host of a TPU pod or of several slices, by the variables of GKE or Compute Engine's metadata."""
    if not has_tpu(environ):
        return None
    import jax  # noqa: F401  # It finds out whether this is a Cloud TPU VM.
    from jax._src.clusters import GceTpuCluster, GkeTpuCluster

    for cluster in (GkeTpuCluster, GceTpuCluster):
        try:
            if not cluster.is_env_present():
                continue
            processes = cluster.get_process_count()
        except OSError:  # No metadata: the TPU is not Compute Engine's.
            continue
        if processes < 2:
            return None
        port = environ.get("JAX_COORDINATOR_PORT")
        address = cluster.get_coordinator_address(int(wait), port)
        return _Found(address, str(processes), str(cluster.get_process_id()))
    return None


def has_tpu(environ: Environment = os.environ) -> bool:
    """Whether this host has TPUs that JAX would use."""
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms.split(","):
        return False
    devices = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


def visible_gpus(environ: Environment = os.environ) -> list[str]:
    """The GPUs of NVIDIA that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name for name in listed.split(",") if name.strip()]
    return [str(number) for number in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def own_gpus(environ: Environment, local: int, here: int) -> tuple[int, ...] | None:
    """The GPUs of one of several processes of a host; None: all that it sees.

    A scheduler may give each process GPUs of its own, or all processes those of the host, which are divided then. (JAX
    gives each process one, and the first to a process that is alone on its host.)

    Args:
      environ: the process's variables.
      local: the process's number on its host.
      here: the number of processes on its host.
    """
    seen = len(visible_gpus(environ))
    of_all = int(environ.get("SLURM_GPUS_ON_NODE") or seen)  # More than it sees: those are its own.
    if here < 2 or seen < max(here, of_all):
        return None
    each = seen // here
    return tuple(range(local * each, (local + 1) * each))
