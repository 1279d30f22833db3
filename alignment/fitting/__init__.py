"""Fit an alignment: closed forms, trained heads, cross-validation."""
