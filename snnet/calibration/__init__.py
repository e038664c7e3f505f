"""What is computed from a few images: stitch layers by least squares, and BatchNorm statistics per stitch."""
