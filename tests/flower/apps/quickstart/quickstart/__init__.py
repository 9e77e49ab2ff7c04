"""An app in the shape of Flower's quickstart with PyTorch: it knows nothing of who runs it."""
