"""What crosses between server and clients, and what is done to it on its way."""
