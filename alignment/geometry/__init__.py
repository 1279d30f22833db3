"""How images and texts lie to each other: modality gap, optimal transport, hubness."""
