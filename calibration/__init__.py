"""INT8: frames, ranges, Q/DQ insertion, the gate."""
