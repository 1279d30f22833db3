"""The demo: emoji, two small encoders, every metric."""
