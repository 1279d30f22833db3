"""One small Ray on this machine for all tests of this package."""

import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def local_ray() -> Iterator[None]:
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patched:
        warnings.simplefilter("ignore")  # Ray's own
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        import ray.data

        ray.init(
            address="local", num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
        ray.shutdown()
