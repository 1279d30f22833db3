"""The cut-offs K that Recall@K is reported at, unless others are asked for."""

KS = (1, 5, 10)
