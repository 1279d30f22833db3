"""Embedding sets as Ray datasets, and Ray datasets as releases, for pipelines of your own.

sink = ReleaseSink(PushRequest(set="clips", into="clips", alignment="clips"), encoders={"image": card})
ray.data.read_parquet("frames/").map_batches(embed).write_datasink(sink)
print(sink.result.counts, sink.result.value)
"""

from alignment.packages import missing_package

try:
    import ray.data  # noqa: F401  it imports pandas and fsspec
except ImportError as error:
    raise missing_package(error, "connector.ray") from error

from connector.ray.reading import read_set
from connector.ray.sink import ReleaseSink

__all__ = ["ReleaseSink", "read_set"]
