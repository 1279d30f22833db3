"""Corpora and databases: the connector side of modalign."""
