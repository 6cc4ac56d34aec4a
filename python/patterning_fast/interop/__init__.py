"""Other libraries' interfaces, computed by this one: change an import line, and a script runs as before."""
