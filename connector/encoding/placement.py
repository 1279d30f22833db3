"""Where the units of a request are encoded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from alignment.modality import Modality
from connector.encoding.loading import encoder_classes
from connector.executors.contract import Executor
from connector.executors.opening import open_executor
from connector.executors.placement import LOCAL
from connector.requests import UnitsRequest


@contextmanager
def executor_of(request: UnitsRequest, specs: Mapping[Modality, str]) -> Iterator[Executor | None]:
    """Open the executor that a request names; None: units are encoded in this process.

    Workers get the modules of encoders that are files of yours.

    Raises: as `open_executor` and `encoder_classes`.
    """
    modules = []
    if request.on != LOCAL:
        modules = [encoder.__module__.partition(".")[0] for encoder in encoder_classes(specs).values()]
    with open_executor(
        request.on, workers=request.workers, gpus_per_worker=request.gpus_per_worker, modules=modules
    ) as executor:
        yield executor
