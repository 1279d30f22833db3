"""Side-by-side benchmarks: each measures modalign beside what it stands on, in one run, and prints ratios."""
