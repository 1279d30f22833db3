"""The demo: 1,707 emoji, two small encoders, every metric."""
