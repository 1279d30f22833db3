"""What a failure of a worker means for the job."""

from typing import Any

import pytest

from connector.errors import CorpusChangedError, EncoderError
from connector.executors.ray_failures import job_error


def failure(error: Exception) -> dict[str, Any]:
    kinds = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]
    return {"kinds": kinds, "message": str(error), "code": getattr(error, "code", None)}


@pytest.mark.parametrize("error", [EncoderError("encoder x cannot be loaded"), CorpusChangedError("a.jsonl")], ids=repr)
def test_what_fails_on_every_machine_ends_the_job(error: Exception) -> None:
    ended = job_error(failure(error), "node")
    assert type(ended) is type(error)
    assert str(error) in str(ended)


@pytest.mark.parametrize("error", [EncoderError("CUDA error", code="embed"), OSError("disk")], ids=repr)
def test_what_may_go_well_another_time_is_tried_again(error: Exception) -> None:
    assert job_error(failure(error), "node") is None
