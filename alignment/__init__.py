"""Embeddings in, an alignment out: the training side of modalign. It knows no database and no command line."""
