"""Search a release, tune its `hnsw_ef`, export it for other languages."""
