"""Our strategies as the server of somebody else's app: its model, its nodes, its messages and its rounds."""
