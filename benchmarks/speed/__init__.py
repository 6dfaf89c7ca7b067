"""How fast runners, stream and start are."""
