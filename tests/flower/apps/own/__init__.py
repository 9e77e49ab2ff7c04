"""Small Flower apps of our own writing, which know nothing of fedsim, and what runs and disturbs them."""
