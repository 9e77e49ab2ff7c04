"""What strategies share, and who works next."""
