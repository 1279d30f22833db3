"""A release: one alignment under one metric in one collection, from its first point to its alias."""
