"""File systems of fsspec for object storage, and what their errors mean.

Each package has errors of its own. What is about one object becomes an `OSError` as of a file, and what is about the
storage a `StorageError`, with a code that is the same for all of them.
"""

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from alignment.errors import MissingPackageError, StorageError

PACKAGES = {"s3fs": "`pip install 'modalign[s3]'`", "gcsfs": "`pip install gcsfs`", "adlfs": "`pip install adlfs`"}
CREDENTIALS = {
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    **dict.fromkeys(("gs", "gcs"), "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`"),
    **dict.fromkeys(
        ("az", "abfs", "abfss"), "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with a key or a login"
    ),
}
NOT_FOUND, DENIED = 404, (401, 403)
# What does not answer is given up: botocore tries 3 times, s3fs 3 times that, for 5 s until there is a connection and
# for 15 s until there is an answer.
_TRIES = 3
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 3}}}
}
_BUCKETS: set[tuple[str, str]] = set()  # that were there, and are not asked for again


def file_system(scheme: str) -> Any:
    """Return fsspec's file system of a scheme. Listings are never remembered: other processes write too."""
    try:
        import fsspec  # with s3fs it takes longer to import than `--help`
    except ImportError as error:
        raise MissingPackageError(f"{scheme}:// needs the package fsspec: {PACKAGES['s3fs']}") from error
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = next((name for name in PACKAGES if name in str(error)), "")
        install = PACKAGES.get(package, f"install the package that fsspec names: {error}")
        raise MissingPackageError(f"{scheme}:// needs a package that is not installed: {install}") from error
    except ValueError as error:
        raise StorageError(
            f"{scheme}://: no file system of fsspec has this name; expected s3, gs, az or another that it knows",
            code="storage-url",
        ) from error
    try:
        # fsspec keeps one of each in a process.
        files = fsspec.filesystem(scheme, use_listings_cache=False, **_OPTIONS.get(scheme.removesuffix("a"), {}))
    except Exception as error:
        raise _storage_error(scheme, f"{scheme}://*", error) from error
    if hasattr(files, "retries"):
        files.retries = _TRIES
    return files


@contextmanager
def translated(scheme: str, bucket: str, url: str) -> Iterator[None]:
    """Raise errors of a storage as ours while the object or directory at `url` is asked for.

    Raises:
        OSError: what is about this object alone, as of a file.
        StorageError: what is about the storage.
    """
    try:
        yield
    except (IsADirectoryError, NotADirectoryError, FileExistsError, StorageError, MissingPackageError, MemoryError):
        raise
    except Exception as error:  # of the package of each storage its own
        if isinstance(error, FileNotFoundError) or _http_status(error) == NOT_FOUND:
            _raise_if_no_bucket(error, scheme, bucket, url)
            raise FileNotFoundError(errno.ENOENT, "there is no such object", url) from error
        if isinstance(error, PermissionError) or _http_status(error) in DENIED:
            raise PermissionError(errno.EACCES, "the storage does not permit it", url) from error
        raise _storage_error(scheme, url, error) from error


def denied(url: object, done: str) -> StorageError:
    """Return the error that says that these credentials do not allow it, where it is no reject of one row."""
    return StorageError(
        f"{url} may not be {done} with these credentials; name others, such as by AWS_PROFILE, or have the rights "
        "granted",
        code="storage-denied",
    )


def _http_status(error: Exception) -> int | None:
    """Return the status of the answer behind an error of azure's or Google's packages, as far as it has one."""
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):  # all that gcsfs keeps of it
        return 403
    statuses = (getattr(error, name, None) for name in ("status_code", "code"))
    return next((status for status in statuses if isinstance(status, int)), None)


def _raise_if_no_bucket(error: Exception, scheme: str, bucket: str, url: str) -> None:
    answer = getattr(error.__cause__, "response", None)
    if isinstance(answer, Mapping):  # of S3, which says what is missing
        missing = answer.get("Error", {}).get("Code") == "NoSuchBucket"
    else:
        missing = not _has_bucket(scheme, bucket)
    if missing:
        raise StorageError(
            f"{url}: there is no bucket {bucket!r} at this storage; make it, or correct the URL or the "
            "endpoint (AWS_ENDPOINT_URL)",
            code="bucket-missing",
        ) from error


def _has_bucket(scheme: str, bucket: str) -> bool:
    """Whether a bucket is there, or may not be looked at."""
    if (scheme, bucket) not in _BUCKETS:
        try:
            there = bool(file_system(scheme).exists(bucket))
        except Exception:  # noqa: BLE001  who may read objects need not be allowed to ask for their bucket
            there = True
        if not there:
            return False
        _BUCKETS.add((scheme, bucket))
    return True


def _storage_error(scheme: str, url: str, error: Exception) -> StorageError:
    kind = type(error).__name__
    if "credential" in f"{kind} {error}".lower():
        return StorageError(
            f"{url}: found no credentials ({kind}); give them as the tools of the storage read them, such as "
            f"{CREDENTIALS.get(scheme, CREDENTIALS['s3'])}",
            code="storage-credentials",
        )
    if kind == "FileExpired" or "PreconditionFailed" in str(error) or "pre-condition" in str(error).lower():
        return StorageError(
            f"{url} was replaced while it was read; wait until its writer ends and run the same command again",
            code="object-changed",
        )
    return StorageError(
        f"{url}: the storage did not answer as expected ({kind}: {_sentence(error)}); check the network, the endpoint "
        "(AWS_ENDPOINT_URL) and the rights, and run the same command again: what is done is not done again",
        code="storage-unavailable",
    )


def _sentence(error: Exception) -> str:
    """Return a message without what follows a question mark in URLs: signatures are there."""
    return re.sub(r"\?\S+", "", " ".join(str(error).split()))[:300]
