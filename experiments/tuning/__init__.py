"""A search for a learning rate beside a grid."""
