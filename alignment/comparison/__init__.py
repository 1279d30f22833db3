"""Compare encoder pairs, methods and metrics, and say what to choose."""
