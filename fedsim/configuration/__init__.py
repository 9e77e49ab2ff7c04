"""An experiment as tables, checked."""
