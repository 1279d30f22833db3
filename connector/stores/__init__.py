"""Stores: one contract; Qdrant Edge in the process and a Qdrant server."""
