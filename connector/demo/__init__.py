"""The demo: 1,914 emoji, two small encoders, every metric."""
