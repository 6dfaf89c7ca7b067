"""Inspector: a loaded bundle that judges single pictures, lists and folders in a program of its user."""
