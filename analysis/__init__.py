"""Stores in, statistics and figures out; needs neither PyTorch nor onnxruntime."""
