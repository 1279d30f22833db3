"""Embedding sets on disk: a card and Parquet shards."""
