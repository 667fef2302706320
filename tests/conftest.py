"""What every test relies on: four Numba threads to choose from, two in use, and steady hypothesis.

Numba reads ``NUMBA_NUM_THREADS`` once, when it is first imported, and `mlpkit.set_num_threads` can
only go up to it. So it is set here, before anything imports Numba, and thread-invariance can be
tested at 1, 2 and 4 threads on a machine with fewer cores.
"""

from __future__ import annotations

import os

os.environ.setdefault("NUMBA_NUM_THREADS", "4")
# Several processes of tests share the cores: idle threads must sleep, not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
from hypothesis import HealthCheck, settings

# The first example of a kernel's signature may compile it: that time is no property of the test.
_STEADY = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("dev", **_STEADY)
settings.register_profile("ci", derandomize=True, database=None, **_STEADY)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(scope="session", autouse=True)
def _two_threads():
    """Run everything on two threads unless a test asks for another number."""
    import mlpkit

    mlpkit.set_num_threads(min(2, int(os.environ["NUMBA_NUM_THREADS"])))


@pytest.fixture
def rng():
    """Return a generator with a fixed seed, fresh for each test."""
    import numpy as np

    return np.random.default_rng(20110)


@pytest.fixture
def clean_registries():
    """Let a test register what it likes: it starts from mlpkit's own plugins, and afterwards all is as it was."""
    from mlpkit import activations, losses, user_penalties

    registries = [activations.record.REGISTRY, losses.record.REGISTRY, user_penalties.REGISTRY]
    kept = [dict(registry) for registry in registries]
    for registry, before in zip(registries, kept, strict=True):
        for name, plugin in before.items():
            if not plugin.builtin:
                del registry[name]
    yield
    for registry, before in zip(registries, kept, strict=True):
        registry.clear()
        registry.update(before)
