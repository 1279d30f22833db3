"""Encoders, and the pass that turns a corpus into an embedding set."""
