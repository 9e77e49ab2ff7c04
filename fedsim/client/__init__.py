"""What client algorithms share."""
