"""What is fitted: projections, feature maps, the alignment on disk, its ONNX graphs."""
