"""Write embedding sets into releases: push, ingest, delete."""
