"""The model of step times: its limits, and that the documentation shows its tables."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scaling():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("scaling")
        del sys.modules["scaling"]


def test_efficiency_falls_with_devices_unless_each_has_its_own_statistics(scaling):
    for system in scaling.SYSTEMS.values():
        for work in scaling.WORKLOADS.values():
            found = [scaling.efficiency(system, work, n) for n in scaling.DEVICES]
            assert found == sorted(found, reverse=True) and min(found) < 0.9
            assert all(scaling.efficiency(system, work, n, n) > 0.9 for n in scaling.DEVICES)
            larger = work.larger(4)
            assert all(
                scaling.efficiency(system, larger, n) > e
                for n, e in zip(scaling.DEVICES, found, strict=True)
            )


def test_the_times_of_exchanges_equal_those_computed_by_hand(scaling):
    work = scaling.Workload(images=1, seconds=1.0, norms=100, parameters=10**9)
    h100, v5e = scaling.SYSTEMS.values()
    # One host of GPUs: 200 exchanges of 12 us, and 2 GB twice over NVLink less an eighth.
    assert scaling.seconds(h100, work, 8) == pytest.approx((1, 2.4e-3, 4e9 * 7 / 8 / 360e9))
    # 16x16 chips: 32 hops; four slices wait for the data centre's network.
    assert v5e.small(256) == pytest.approx(35e-6) and v5e.small(1024) == pytest.approx(135e-6)


def test_the_documentation_shows_these_tables(scaling):
    page = (ROOT / "docs" / "scaling.md").read_text()
    for name, system in scaling.SYSTEMS.items():
        for line in scaling.table(name, system):
            assert line in page
