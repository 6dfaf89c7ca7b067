"""N-Net: constrained bidirectional distillation."""
