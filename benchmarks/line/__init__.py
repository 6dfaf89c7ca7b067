"""What a whole line can do: cameras, sinks, page, faults, hours."""
