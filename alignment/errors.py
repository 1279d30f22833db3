"""The exceptions of modalign, in one picture. Every message says what was expected, what arrived and what to do.

ModalignError
├── EmbeddingSetError     a directory is no embedding set, or its content is damaged
│   └── SetBusyError      ... because another process is writing it
├── VectorError           vectors that are NaN, infinite, zero or of another dimension
├── MetricError           a metric that there is not, or not with these parameters or this alignment
├── WeightsError          learned weights that are damaged or have diverged
├── FitError              data from which nothing can be fitted
├── GapError              embeddings whose modality gap cannot be measured
├── MeasureError          a measure that there is not, or of no queries
├── TrainingError         a setting of the training loop that there is not, or not with such a value
├── AlignmentError        a directory is no alignment, or is damaged
├── ExportError           graphs that cannot be written: packages are missing, or a directory is in the way
├── DeviceError           the device that was asked for is not there
├── MissingPackageError   a package that is not installed
├── StorageError          object storage that does not answer, or a URL that is none of it
└── ConnectorError        corpora and databases: see connector.errors
"""

import re


class ModalignError(Exception):
    """Base of every error that modalign raises on purpose; `except ModalignError` catches them all.

    Attributes:
        code: a short name for programs, such as `embedding-set`. It stays when the sentence is reworded. Each class
            has its own; an error may carry a narrower one.

    >>> EmbeddingSetError("expected a card").code
    'embedding-set'
    """

    code = "modalign"

    def __init__(self, *args: object, code: str | None = None):
        super().__init__(*args)
        if code is not None:
            self.code = code

    def __init_subclass__(cls, **options: object):
        super().__init_subclass__(**options)
        cls.code = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__.removesuffix("Error")).lower()


class EmbeddingSetError(ModalignError):
    """A directory is not an embedding set, is incomplete, or holds other data than its card says."""


class SetBusyError(EmbeddingSetError):
    """Another process is writing the embedding set."""


class VectorError(ModalignError, ValueError):
    """Vectors that cannot be compared: NaN, infinite, zero, or of another dimension than expected."""


class MetricError(ModalignError, ValueError):
    """A metric that does not exist, or that an alignment holds nothing for."""


class WeightsError(ModalignError):
    """The weights of a learned metric are damaged or have diverged."""


class FitError(ModalignError, ValueError):
    """Training data from which no alignment can be fitted."""


class GapError(ModalignError, ValueError):
    """Embeddings whose modality gap cannot be measured: of two spaces, or of too few groups."""


class MeasureError(ModalignError, ValueError):
    """A measure that does not exist, or queries that nothing can be measured of."""


class TrainingError(ModalignError, ValueError):
    """A setting of the training loop that does not exist, or not with such a value."""


class AlignmentError(ModalignError):
    """A directory is not an alignment, or its weights are not the ones its card was written for."""


class DeviceError(ModalignError):
    """A device was asked for by name and is not available."""


class ExportError(ModalignError):
    """An alignment cannot be exported: packages are missing, the directory is taken, or a graph would be wrong."""


class StorageError(ModalignError):
    """Object storage that does not answer or breaks off, a bucket that is not there, or a URL that names neither.

    What is about one object alone, that it is missing or may not be read, is an `OSError`, as of a file.
    """


class MissingPackageError(ModalignError):
    """A package that is not installed, or cannot be imported; the message says how to install it."""
