"""Finds the index of this process, the number of processes of the run, and the address of process 0.

These values come from command line flags, from environment variables or from the cluster. For TPU pods, Slurm and Open
MPI this module uses the detection of JAX (`jax._src.clusters`). It also reads the environment variables of PyTorch
launchers, SkyPilot and indexed Kubernetes jobs, without access to the Kubernetes API.
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
"""Maps command line flags (without `--`) to the environment variables with the same meaning."""
PORT = 8476
"""Default port at which process 0, the coordinator, listens."""

Environment = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Place:
    """Identifies this process among the processes of a run."""

    coordinator: str
    """Address `HOST:PORT` at which process 0, the coordinator, listens."""
    processes: int
    """Number of processes of the run."""
    process: int
    """Index of this process in the run, from 0."""
    gpus: tuple[int, ...] | None = None
    """Indices of the visible GPUs that this process uses. If None, it uses all of them."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of process 0, the coordinator."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def is_local(self) -> bool:
        """Whether all processes of the run are on this host, which is the case if the coordinator's address is a
        loopback address.
        """
        return self.address[0] in ("localhost", "127.0.0.1", "::1")

    def __str__(self) -> str:
        return f"process {self.process} of {self.processes}"


def find(environ: Environment = os.environ, wait: float = 300) -> Place | None:
    """Finds the index of this process, the number of processes and the coordinator's address, from environment
    variables or from the cluster. Returns None if this is the only process.

    Args:
      environ: environment variables to read.
      wait: maximum number of seconds to wait for the address of a TPU pod's coordinator.

    Raises:
      InputError: If the variables are incomplete or contradict each other.
    """
    given = {flag: environ[name] for flag, name in FLAGS.items() if environ.get(name)}
    if given.keys() == FLAGS.keys() or given.get("processes") == "1":
        return _checked(given)
    # TPU detection takes precedence, because the order of processes must be the order of the TPU hosts.
    found = _on_tpu(environ, wait) or next(filter(None, (look(environ) for look in _CLUSTERS)), None)
    if found is None and not given:
        return None
    found = found or _Found()
    return _checked({**found.known(), **given}, found.gpus)


@dataclasses.dataclass(frozen=True)
class _Found:
    """Values for the fields of `Place` that were detected in a cluster's environment. A value that the cluster does not
    define is None.
    """

    coordinator: str | None = None
    processes: str | None = None
    process: str | None = None
    gpus: tuple[int, ...] | None = None

    def known(self) -> dict[str, str]:
        values = {"coordinator": self.coordinator, "processes": self.processes, "process": self.process}
        return {flag: value for flag, value in values.items() if value is not None}


def _checked(given: dict[str, str], gpus: tuple[int, ...] | None = None) -> Place | None:
    """Checks values from flags or from the cluster, and converts them to a `Place`. Returns None if there is only one
    process.

    Args:
      given: maps `coordinator`, `processes` and `process` to their values as text. Keys may be missing.
      gpus: indices of the GPUs that this process uses. If None, it uses all visible GPUs.

    Raises:
      InputError: If a value is invalid, or missing although there are several processes.
    """
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
        raise InputError(f"{said}: expected {' and '.join(missing)} too, because no cluster defines it")
    coordinator, processes, process = given["coordinator"], numbers["processes"], numbers["process"]
    if not process < processes:
        raise InputError(f"--process {process}: expected 0 to {processes - 1}, as --processes is {processes}")
    if not re.search(r":\d+$", coordinator):
        coordinator = f"{coordinator}:{PORT}"
    if not re.fullmatch(r"(\[[\w:.%]+\]|[\w.-]+):\d{1,5}", coordinator):
        raise InputError(f"--coordinator {given['coordinator']}: expected HOST:PORT, such as 10.0.0.1:{PORT}")
    return Place(coordinator, processes, process, gpus)


def _on_slurm(environ: Environment) -> _Found | None:
    """If Slurm's `srun` started this process as one of several tasks, returns its index, the number of tasks, the
    address of process 0 and its GPUs. Otherwise returns None.

    Also returns None in the script that `sbatch` runs, which has SLURM_NTASKS too, but is not one of the tasks.
    """
    if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2 or "SLURM_PROCID" not in environ:
        return None
    from jax._src.clusters import SlurmCluster  # Reads os.environ.

    address = SlurmCluster.get_coordinator_address(None, environ.get("JAX_COORDINATOR_PORT"))
    here = _tasks_of_node(environ["SLURM_STEP_TASKS_PER_NODE"], int(environ["SLURM_NODEID"]))
    gpus = own_gpus(environ, int(environ["SLURM_LOCALID"]), here)
    return _Found(address, environ["SLURM_STEP_NUM_TASKS"], environ["SLURM_PROCID"], gpus)


def left_out(environ: Environment = os.environ) -> str:
    """Returns a warning if this process is the only one of a Slurm job for several tasks, because the job script does
    not start it with `srun`. Otherwise returns an empty string.
    """
    tasks = environ.get("SLURM_NTASKS", "1")
    if tasks != "1" and "SLURM_PROCID" in environ and "SLURM_STEP_NUM_TASKS" not in environ and COUNT not in environ:
        return f"this is a Slurm job script, not one of its {tasks} tasks: only one process trains; srun starts all"
    return ""


def _tasks_of_node(counts: str, node: int) -> int:
    """Returns the number of tasks on the node with index `node`. `counts` is Slurm's list of the numbers for all nodes,
    such as `8(x2),4` for 8, 8 and 4 tasks.
    """
    expanded = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
        expanded += [int(count)] * int(times or 1)
    return expanded[node]


def _on_open_mpi(environ: Environment) -> _Found | None:
    """If `mpirun` of Open MPI started this process as one of several, returns its index, the number of processes, the
    address of process 0 and its GPUs. Otherwise returns None.

    Process 0 must be on the host that runs `mpirun`. Open MPI 5 and later do not report this host, so the address must
    be given as a flag.
    """
    if int(environ.get("OMPI_COMM_WORLD_SIZE", "1")) < 2:
        return None
    from jax._src.clusters import OmpiCluster

    port = environ.get("JAX_COORDINATOR_PORT")
    try:
        address = OmpiCluster.get_coordinator_address(None, port) if OmpiCluster.is_env_present() else None
    except RuntimeError:  # Since JAX 0.12, for Open MPI 5 without mpi4py.
        address = None
    local, here = (int(environ[f"OMPI_COMM_WORLD_LOCAL_{name}"]) for name in ("RANK", "SIZE"))
    gpus = own_gpus(environ, local, here)
    return _Found(address, environ["OMPI_COMM_WORLD_SIZE"], environ["OMPI_COMM_WORLD_RANK"], gpus)


def _of_torch(environ: Environment) -> _Found | None:
    """If torchrun, or a Kubernetes operator that sets the same variables, started this process as one of several,
    returns its index, the number of processes, the address of process 0 and its GPUs. Otherwise returns None.
    """
    if int(environ.get("WORLD_SIZE") or 1) < 2 or not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= environ.keys():
        return None
    port = int(environ["MASTER_PORT"]) + ("TORCHELASTIC_RUN_ID" in environ)  # torchrun itself uses MASTER_PORT.
    local, here = int(environ.get("LOCAL_RANK", "0")), int(environ.get("LOCAL_WORLD_SIZE", "1"))
    address = f"{environ['MASTER_ADDR']}:{port}"
    return _Found(address, environ["WORLD_SIZE"], environ["RANK"], own_gpus(environ, local, here))


def _on_sky_pilot(environ: Environment) -> _Found | None:
    """If this is one of several nodes of a SkyPilot task, returns the index of the node, the number of nodes, and the
    address of the first node. Otherwise returns None. There is one process per node.
    """
    nodes = environ.get("SKYPILOT_NODE_IPS", "").split()
    if len(nodes) < 2 or "SKYPILOT_NODE_RANK" not in environ:
        return None
    return _Found(f"{nodes[0]}:{PORT}", str(len(nodes)), environ["SKYPILOT_NODE_RANK"])


def _of_indexed_job(environ: Environment) -> _Found | None:
    """If this is a pod of an indexed Kubernetes job, such as a JobSet, returns the index of the pod. Otherwise returns
    None.

    The job defines only the index. The address of process 0 and the number of processes must be given as flags or
    variables.
    """
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
    """If this host belongs to a TPU pod, or to several TPU slices, returns the index of the host, the number of hosts,
    and the address of host 0. Otherwise returns None.

    On GKE the values come from environment variables, and on Compute Engine from the metadata server. `wait` is the
    maximum number of seconds to wait for the address.
    """
    if not has_tpu(environ):
        return None
    import jax  # noqa: F401  # The import detects whether this is a Cloud TPU VM.
    from jax._src.clusters import GceTpuCluster, GkeTpuCluster

    for cluster in (GkeTpuCluster, GceTpuCluster):
        try:
            if not cluster.is_env_present():
                continue
            processes = cluster.get_process_count()
        except OSError:  # There is no metadata server, so this is not a Compute Engine VM.
            continue
        if processes < 2:
            return None
        port = environ.get("JAX_COORDINATOR_PORT")
        address = cluster.get_coordinator_address(int(wait), port)
        return _Found(address, str(processes), str(cluster.get_process_id()))
    return None


def has_tpu(environ: Environment = os.environ) -> bool:
    """Returns whether this host has TPUs, the package libtpu is installed, and JAX_PLATFORMS does not exclude TPUs."""
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms.split(","):
        return False
    devices = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


def visible_gpus(environ: Environment = os.environ) -> list[str]:
    """Returns the indices or names of the NVIDIA GPUs that this process can see: the entries of CUDA_VISIBLE_DEVICES
    or, if it is not set, all GPUs of the host.
    """
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name for name in listed.split(",") if name.strip()]
    return [str(number) for number in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def own_gpus(environ: Environment, local: int, here: int) -> tuple[int, ...] | None:
    """Returns the indices of the visible GPUs that one of several processes on a host should use. Returns None if it
    should use all visible GPUs.

    Some schedulers make only the process's own GPUs visible to it. If instead all GPUs of the host are visible to every
    process, the processes divide them evenly. (By default, JAX would use one GPU per process.)

    Args:
      environ: environment variables of the process.
      local: index of the process on its host.
      here: number of processes on its host.
    """
    seen = len(visible_gpus(environ))
    of_all = int(
        environ.get("SLURM_GPUS_ON_NODE") or seen
    )  # If more than `seen`, the visible GPUs belong to this process only.
    if here < 2 or seen < max(here, of_all):
        return None
    each = seen // here
    return tuple(range(local * each, (local + 1) * each))
