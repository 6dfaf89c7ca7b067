"""Methods: networks, their losses and what they are built of."""
