"""Readers of corpora: files in, items or rejects out. One module a format."""

# For help texts, which must not load the readers; a test compares them with `connector.corpora.formats.FORMATS`.
FORMAT_NAMES = ("jsonl", "csv", "parquet", "folder", "coco", "karpathy", "flickr", "webdataset", "img2dataset")
