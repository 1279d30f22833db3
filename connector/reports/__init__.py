"""Pages and files for people and machines: HTML, charts, JSON, Prometheus."""
