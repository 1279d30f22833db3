"""Search a release, tune it, export it for other languages."""
