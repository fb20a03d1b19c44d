"""GPUs by name, and the report of a step compiled for them."""

from importlib import metadata
from types import SimpleNamespace

import pytest

from nvae_jax import build
from nvae_jax.planning import compiled, estimate, gpu, topology
from nvae_jax.planning.collectives import Collectives
from nvae_jax.planning.kernels import KernelCounts
from tests.conftest import tiny_config


@pytest.mark.parametrize(
    ("name", "hosts", "devices"), [("h100", 1, 1), ("l4:8", 1, 8), ("a100:2x8", 2, 16)]
)
def test_a_name_gives_the_card_and_the_number_of_hosts_and_devices(name, hosts, devices):
    cluster = topology.parse(name)
    assert (cluster.name, cluster.hosts, cluster.num_devices) == (name, hosts, devices)
    assert cluster.platform == "cuda" and cluster.hbm == cluster.card.memory


@pytest.mark.parametrize("name", ["h100:0", "h100:2x", "h100:x8", "h100:2x2x2", "v100", "h100:1x0"])
def test_wrong_names_are_errors_that_show_right_ones(name):
    with pytest.raises(ValueError, match="as h100, h100:8 or h100:2x8 .* GPUs: h100, h200, a100"):
        topology.parse(name)


def test_a_missing_compiler_is_an_error_that_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(metadata, "entry_points", lambda group: ())
    with pytest.raises(ValueError, match=r"pip install 'nvae_jax\[gpu\]'"):
        topology.parse("h100").devices()


def test_autotuning_in_xla_flags_is_not_overridden(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert topology.parse("h100").compiler_options == {"xla_gpu_autotune_level": 0}
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=4")
    assert topology.parse("h100").compiler_options is None


@pytest.mark.parametrize("kind", gpu.CARDS)
def test_the_description_of_a_card_for_the_compiler_has_its_numbers(kind):
    card = gpu.CARDS[kind]
    text = gpu.target_config(card)
    assert f"core_count: {card.cores}" in text and text.count("{") == text.count("}")
    assert f"memory_bandwidth: {card.bandwidth} device_memory_size: {card.memory}" in text
    assert f"major: {card.capability[0]} minor: {card.capability[1]}" in text


def test_the_step_that_is_planned_has_the_groups_unrolled_as_on_the_card():
    config = estimate.planning_config(tiny_config(model={"unroll": 0}))
    assert build.build_model(config, [SimpleNamespace(platform="gpu")]).unroll > 1


def report(monkeypatch, name, gigabytes):
    share = int(gigabytes * 1e9 / 4)
    kernels = KernelCounts(10_000, 63_000_000_000, 1)
    step = compiled.Compiled(share, share, share, 3 * share, Collectives(), kernels, 1.0)
    monkeypatch.setattr(compiled, "compile_step", lambda *_: step)
    return compiled.report(tiny_config(), topology.parse(name))


def test_the_report_has_kernels_bytes_and_their_times(monkeypatch):
    lines, fits = report(monkeypatch, "h100", 6.0)
    assert fits and "in total 6.00: it fits" in lines[1]
    assert lines[3] == (
        "kernels per step: 10,000, which read and write 63.0 GB: 20.9 ms for the bytes and 25.0 ms "
        "for launching"
    )
    assert lines[4] == "  and more in 1 loop(s) of unknown length"


def test_the_report_says_that_a_step_does_not_fit_the_card(monkeypatch):
    lines, fits = report(monkeypatch, "l4", 30.0)
    assert not fits and "in total 30.00: cannot fit" in lines[1]
