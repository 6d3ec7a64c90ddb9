"""The whole program, started the way people start it, on small real files."""
