"""What the benchmarks share: rounds, grid, machine, tables, plots."""
