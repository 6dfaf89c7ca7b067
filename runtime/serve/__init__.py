"""The inference server: pictures and tensors by HTTP, verdicts as the line gives them."""
