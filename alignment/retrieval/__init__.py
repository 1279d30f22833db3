"""Retrieval measures: ranks, Recall@K, bootstrap intervals, protocols."""
