"""Corpora: files in, items or rejects out. One module a format."""
