"""Training: the loop and what it keeps, chooses and writes."""
