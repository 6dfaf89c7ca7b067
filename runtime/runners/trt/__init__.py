"""TensorRT and CUDA."""
