"""Audits: ask a live release labelled queries, measure each stage, compare, decide."""
