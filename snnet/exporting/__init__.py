"""Stitches as files (torch.export, ONNX) that run without this package."""
