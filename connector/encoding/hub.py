"""The hub of Hugging Face, from which encoders download their weights: reached within seconds, or said to be away.

Its client waits for minutes for a hub that is away, and says so for each file. Here one short request comes first. If
it is not answered, the client is kept off the network: a model that was downloaded before loads from its cache, and any
other fails at once. Of a model that is surely not in the cache that is known before torch and the library of the model
are imported, which takes longer than all else.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError

from connector.errors import EncoderError

PROBE_SECONDS = 3.0  # for connecting, and for the answer
LONGEST_PROBE = 5.0  # with looking up the name, which no timeout covers


def check_hub(spec: str, library: str, *repositories: str) -> None:
    """Raise an error if a model is neither in the cache nor on a hub that is reached. It returns within seconds.

    Args:
        spec: what is to be loaded, for messages.
        library: the package that loads it.
        repositories: names of repositories, one of which holds it; none: it is in any.

    Raises:
        EncoderError: the hub is not reached, and the cache holds no such repository.
        ModuleNotFoundError: the library is not installed.
    """
    if find_spec(library) is None:
        raise ModuleNotFoundError(f"No module named {library!r}", name=library)
    from huggingface_hub import constants  # takes as long to import as all of `--help`

    caches = [constants.HF_HUB_CACHE, *filter(None, [os.environ.get("SENTENCE_TRANSFORMERS_HOME")])]
    names = [f"models--{name.replace('/', '--')}" for name in repositories] or ["models--*"]
    if any(any(Path(cache).glob(f"{name}/snapshots/*/*")) for cache in caches for name in names):
        return
    problem = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _problem(constants.ENDPOINT)
    if problem:
        raise _unreachable(spec, problem)


@contextmanager
def hub(spec: str, *, local: bool = False) -> Iterator[None]:
    """Let the block load the model `spec` from the hub, or from its cache alone where the hub is not reached.

    The setting is of the process, so one block may be open at a time: `load_encoder` sees to that.

    Args:
        spec: what is loaded, for messages.
        local: everything that it needs is on this machine, so nothing is asked.

    Raises:
        EncoderError: the hub is not reached, and the cache lacks the model.
    """
    if local:
        yield
        return
    from huggingface_hub import constants  # takes as long to import as all of `--help`

    wanted = constants.HF_HUB_OFFLINE
    problem = "HF_HUB_OFFLINE is set" if wanted else _problem(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = problem is not None
    try:
        with _one_line_a_failure():
            yield
    except Exception as error:
        if problem is None or not _wants_network(error):
            raise
        raise _unreachable(spec, problem) from error
    finally:
        constants.HF_HUB_OFFLINE = wanted


def _unreachable(spec: str, problem: str) -> EncoderError:
    from huggingface_hub import constants

    return EncoderError(
        f"encoder {spec}: its files are not all in the cache {constants.HF_HUB_CACHE}, and the hub "
        f"{constants.ENDPOINT} is not reached ({problem}). Load it once where the hub is reached and copy the "
        "cache, name a directory or file on this machine in the spec, or name a mirror in HF_ENDPOINT",
        code="hub-unreachable",
    )


def _problem(endpoint: str) -> str | None:
    """Say why the hub does not answer; None: it answers. Proxies and certificates are those of its own client."""
    from huggingface_hub import get_session

    problems: list[str | None] = []

    def ask() -> None:
        try:
            status = get_session().head(endpoint, timeout=PROBE_SECONDS).status_code
        except Exception as error:  # noqa: BLE001  of whichever HTTP library this client uses
            problems.append(" ".join(f"{type(error).__name__}: {error}".split()))
        else:
            problems.append(f"it answered with status {status}" if status >= 500 else None)

    thread = threading.Thread(target=ask, daemon=True)  # whose end nobody waits for: a look-up may take a minute
    thread.start()
    thread.join(LONGEST_PROBE)
    return problems[0] if problems else f"no answer within {LONGEST_PROBE:.0f} s"


def _wants_network(error: BaseException) -> bool:
    """Say whether an error, or one that it came from, is of a request or of a file that the cache lacks."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        cause = pending.pop()
        if cause is None or id(cause) in seen:
            continue
        if isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError | URLError):
            return True
        seen.add(id(cause))
        pending += [cause.__cause__, cause.__context__]
    return False


@contextmanager
def _one_line_a_failure() -> Iterator[None]:
    """Keep what model libraries log at the root away: it is said again by the error that they raise.

    Without a handler there, `logging.info` and `logging.error` would install one, which then repeats all of our lines.
    """
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    root.addFilter(_not_an_error)
    try:
        yield
    finally:
        root.removeFilter(_not_an_error)
        root.removeHandler(handler)


def _not_an_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR
