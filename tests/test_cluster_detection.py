import jax
import pytest

from nvae_jax import cluster_detection
from nvae_jax.cluster_detection import DistributedSettings
from tests.local_cluster import jax_variables, slurm_variables


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"timeout": 0}, "distributed.timeout must be an integer of at least 5"),
        ({"start_timeout": 2.5}, "distributed.start_timeout must be an integer"),
        ({"num_processes": 0}, "must be positive, not 0"),
        ({"process_id": -1}, "must not be negative: -1"),
        ({"num_processes": 2, "process_id": 2}, "process id 2 of 2"),
        ({"coordinator_address": "host"}, "HOST:PORT, not 'host'"),
        ({"coordinator_address": "host:99999"}, "HOST:PORT, not 'host:99999'"),
    ],
)
def test_invalid_settings_are_errors(values, message):
    with pytest.raises(ValueError, match=message):
        DistributedSettings(**values)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES must be a number, not 'two'"),
        ({"JAX_NUM_PROCESSES": "2"}, "^JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID missing"),
        ({"JAX_PROCESS_ID": "0"}, "^JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES missing"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "^JAX_NUM_PROCESSES and JAX_PROCESS_ID missing"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "names no coordinator: set JAX_COORDINATOR_ADDRESS"),
    ],
)
def test_incomplete_settings_of_a_cluster_are_errors(variables, message):
    with pytest.raises(ValueError, match=message):
        settings = cluster_detection.with_environment(DistributedSettings(), variables)
        cluster_detection.find_cluster(settings, variables)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"JAX_NUM_PROCESSES": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"},  # a batch script, not started by srun
        {**slurm_variables()[0], "SLURM_STEP_NUM_TASKS": "1"},  # a shell inside an allocation
    ],
)
def test_a_single_process_has_no_cluster(variables):
    settings = cluster_detection.with_environment(DistributedSettings(), variables)
    assert cluster_detection.find_cluster(settings, variables) is None


def test_settings_override_the_environment():
    settings = DistributedSettings(coordinator_address="a:1", num_processes=3, process_id=2)
    assert cluster_detection.with_environment(settings, jax_variables()[0]) == settings


@pytest.fixture
def tpu_platform():
    """JAX's platforms as on a host with a TPU."""
    platforms = jax.config.jax_platforms
    jax.config.update("jax_platforms", "tpu,cpu")
    yield
    jax.config.update("jax_platforms", platforms)


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "Cloud TPU"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "Cloud TPU"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "Cloud TPU"),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
        ({"TPU_SKIP_MDS_QUERY": "1"}, None),
    ],
)
def test_cloud_tpu_is_a_cluster_unless_it_has_one_host(tpu_platform, variables, name):
    cluster = cluster_detection.find_cluster(DistributedSettings(), variables)
    assert (cluster and cluster.name) == name
