"""How exact the methods are, and what each choice brings."""
