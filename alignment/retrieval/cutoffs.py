"""The cut-offs K that Recall@K is reported at, unless others are asked for."""

KS = (1, 5, 10)
K = KS[-1]  # stands for all
ENDS = (KS[0], K)  # where there is no room for all
RECALL = f"recall@{K}"
