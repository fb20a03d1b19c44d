"""The hosts of a cluster must have the same code, packages, config and arguments."""

import time

import pytest

from nvae_jax import hosts, processes
from tests.conftest import tiny_config
from tests.local_cluster import LocalCluster, jax_variables

JOIN = """
import time
from nvae_jax import cli, hosts
from nvae_jax.configs import digits

def config_with(**sections):
    config = digits.get_config()
    for section, values in sections.items():
        config[section].update(values)
    return config

def fails_with(message, config, **arguments):
    try:
        hosts.join(config, **arguments)
    except ValueError as error:
        return str(error) == message or str(error)

alike = "the hosts of a cluster need the same "
own = {"data": {"dir": f"/data{index}", "workers": index}}
assert fails_with("", config_with(**own), restart=False) is None
here = {"log": {"every_steps": 1 + index, "num_images": 4 + index}}
told = "config: log.every_steps is 1 in process 0 and 2 in process 1 (and 1 more)"
assert fails_with(alike + told, config_with(**here)) is True
told = "config: restart is False in process 0 and True in process 1"
assert fails_with(alike + told, config_with(), restart=index == 1) is True
now = time.time
time.time = lambda: now() - 3600 * index
hosts.join(config_with())
time.time = now
versions = hosts.versions
hosts.versions = lambda: {**versions(), "jax": f"0.{index}"}
cli.run(lambda _: hosts.join(config_with()))
"""


def test_differences_between_hosts_are_an_error_in_all_processes(commands):
    with LocalCluster(commands, JOIN, jax_variables()) as cluster:
        results = cluster.finish(120)
    for index, (status, _, error) in enumerate(results):
        assert status == 2, error
        told = "code: jax is '0.0' in process 0 and '0.1' in process 1"
        assert error.splitlines()[-1] == f"error: the hosts of a cluster need the same {told}"
        clocks = [line for line in error.splitlines() if line.startswith("warning: the clock of")]
        assert len(clocks) == (index == 0), error
        assert all("process 1 on" in line and "behind that of process 0" in line for line in clocks)


def test_changed_files_are_another_version(monkeypatch, tmp_path):
    found = []
    for content in ("a = 1", "a = 2"):
        (tmp_path / "a.py").write_text(content)
        monkeypatch.setattr(hosts.nvae_jax, "__file__", str(tmp_path / "__init__.py"))
        hosts._digest.cache_clear()
        found.append(hosts.versions()["nvae_jax"])
    hosts._digest.cache_clear()
    assert found[0] != found[1]


def test_one_process_has_nothing_to_compare(monkeypatch):
    monkeypatch.setattr(hosts, "versions", lambda: pytest.fail("compared"))
    hosts.join(tiny_config())
    processes.check_same("settings", {"time": time.time()})
