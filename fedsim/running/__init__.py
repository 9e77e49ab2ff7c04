"""From tables to a folder of results."""
