"""What privacy costs in accuracy."""
