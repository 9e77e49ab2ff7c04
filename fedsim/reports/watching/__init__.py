"""Runs below a folder, shown by a browser of this machine while they go on; read only."""
