"""Alembic migrations of the provenance database, shipped inside the installed package."""
