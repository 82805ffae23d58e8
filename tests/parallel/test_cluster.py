"""A process's place is read from flags, variables and clusters; one that is alone asks no one."""

import http.server
import os
import subprocess
import sys
import threading
from unittest import mock

import pytest

from jaxformer.errors import InputError
from jaxformer.parallel import cluster, start
from jaxformer.parallel.cluster import Place, find, own_gpus

SLURM = {  # As `srun -n 3` on two nodes gives it to the third task.
    "SLURM_JOB_ID": "4099",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08],gpu12",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
TORCH = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "host-0", "MASTER_PORT": "29500"}
SKY_PILOT = {"SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2"}
JOB = {"JAX_COORDINATOR_ADDRESS": "train-0-0.train:1234", "JAX_NUM_PROCESSES": "8", "JOB_COMPLETION_INDEX": "5"}


@pytest.fixture
def environ():
    """Sets variables for JAX too, which reads those of the process. Restores them all, and those that flags set."""
    clusters = ("JAX_COORD", "JAX_NUM", "JAX_PROC", "SLURM", "OMPI", "CUDA_VIS", "TPU_", "MEGASCALE")
    with mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith(clusters)]:
            del os.environ[name]

        def update(values):
            os.environ.update(values)
            return os.environ

        yield update


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (SLURM, Place("gpu07:61443", 3, 2)),
        (OPEN_MPI, Place("10.96.0.1:62624", 4, 3)),
        (TORCH, Place("host-0:29500", 2, 1)),
        (TORCH | {"TORCHELASTIC_RUN_ID": "none", "LOCAL_RANK": "1"}, Place("host-0:29501", 2, 1)),
        (SKY_PILOT, Place("10.0.0.4:8476", 2, 1)),
        (JOB, Place("train-0-0.train:1234", 8, 5)),
        (JOB | {"JAX_PROCESS_ID": "7"}, Place("train-0-0.train:1234", 8, 7)),
    ],
)
def test_clusters_say_where_a_process_is(environ, variables, expected):
    assert find(environ(variables)) == expected


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "1"},  # The script of sbatch.
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},
        SLURM | {"JAX_NUM_PROCESSES": "1"},
        {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
        {"JOB_COMPLETION_INDEX": "0"},
        {"SKYPILOT_NODE_IPS": "10.0.0.4", "SKYPILOT_NODE_RANK": "0"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ],
)
def test_one_process_is_alone(environ, variables):
    assert find(environ(variables)) is None


def test_a_process_that_is_alone_imports_nothing_for_it():
    check = (
        "import sys; from jaxformer.parallel import cluster; assert cluster.find() is None; "
        "assert not {'jax', 'requests'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_flags_come_before_what_a_cluster_says(environ):
    environ({name: value for name, value in OPEN_MPI.items() if "uri" not in name})  # As of Open MPI 5.
    with pytest.raises(InputError, match=r"--processes 4, --process 3: expected --coordinator .* too"):
        find()
    rest, limits = start.take_flags(["CONFIG", "--coordinator", "10.0.0.9", "--steps", "3", "--wait=5"])
    assert (rest, limits.wait, limits.silence) == (["CONFIG", "--steps", "3"], 5.0, 25.0)
    assert find() == Place("10.0.0.9:8476", 4, 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--processes 2", r"--processes 2: expected --coordinator \(JAX_COORDINATOR_ADDRESS\) and --process \("),
        ("--coordinator h:1 --processes two --process 0", "--processes two: expected a number"),
        ("--coordinator h:1 --processes 2 --process 2", "--process 2: expected 0 to 1, as --processes is 2"),
        ("--coordinator http://h:1 --processes 2 --process 1", "--coordinator http://h:1: expected HOST:PORT, such as"),
        ("--coordinator", "--coordinator: expected one argument"),
        ("--wait -1", "--wait"),
        ("--silence 0", "--silence 0: expected a number of seconds above 0"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(environ, flags, message):
    environ({})
    with pytest.raises(InputError, match=message):
        start.take_flags(flags.split())
        find()


@pytest.mark.parametrize(
    ("variables", "local", "here", "expected"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 0, 1, None),  # Alone on its host: all of them.
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 1, 4, (1,)),  # As --gpus-per-node=4 gives them.
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 1, 2, (2, 3)),
        ({"CUDA_VISIBLE_DEVICES": "2"}, 1, 4, None),  # As --gpus-per-task=1 does.
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_ON_NODE": "8"}, 1, 2, None),  # As --gpus-per-task=4 does.
        ({"CUDA_VISIBLE_DEVICES": ""}, 1, 2, None),
    ],
)
def test_processes_of_a_host_divide_its_gpus(variables, local, here, expected):
    assert own_gpus(variables, local, here) == expected


def test_the_tasks_of_a_node_are_read_from_slurms_list(environ):
    environ(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x2),4", "SLURM_NODEID": "2", "CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    assert find().gpus == (0,)
    environ({"SLURM_NODEID": "1"})
    assert find().gpus is None, "eight tasks, four GPUs"


@pytest.fixture
def on_tpu(environ, monkeypatch):
    """As on a host of a TPU, for JAX and for us."""
    monkeypatch.setattr(cluster, "has_tpu", lambda environ: True)
    monkeypatch.setattr("jax._src.clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm", True)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    return environ


def test_a_host_of_two_slices_on_gke_knows_its_place(on_tpu):
    variables = {
        "TPU_WORKER_HOSTNAMES": "h0,h1",
        "TPU_WORKER_ID": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
    }
    # SkyPilot numbers the hosts in another order, which is not that of the TPU's devices.
    assert find(on_tpu(variables | SKY_PILOT)) == Place("localhost:8482", 4, 3)


@pytest.fixture
def metadata(on_tpu):
    """The metadata server of a Compute Engine host; its values are to be filled in."""
    values = {}

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            key = self.path.rpartition("/")[2]
            self.send_response(200 if key in values else 404)
            self.end_headers()
            self.wfile.write(values.get(key, "").encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        on_tpu({"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"})
        yield values
        server.shutdown()
        thread.join()


def test_a_host_of_a_pod_asks_the_metadata_of_compute_engine(metadata):
    metadata |= {"agent-worker-number": "2", "tpu-env": "TYPE: 'V5E'\n"}
    metadata["worker-network-endpoints"] = ",".join(f"x:{number}:127.0.0.{number + 1}" for number in range(4))
    assert find() == Place("127.0.0.1:8482", 4, 2)
    metadata["worker-network-endpoints"] = "x:0:127.0.0.1"
    assert find() is None, "a TPU of one host"


def test_the_script_of_a_job_of_several_tasks_is_warned(environ):
    environ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"})
    with pytest.warns(UserWarning, match="not one of its 2 tasks: only one process trains"), start.joined("train"):
        pass
    assert not cluster.left_out({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
    assert not cluster.left_out(SLURM | {"SLURM_STEP_NUM_TASKS": "1"})


def test_a_process_that_is_alone_joins_nothing(environ):
    environ({})
    with start.joined("train") as place:
        assert place is None
