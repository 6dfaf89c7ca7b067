"""The TensorRT runner: engines, their records, and CUDA kernels."""
