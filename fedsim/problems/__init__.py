"""What is optimised: data, models, and how both are dealt to clients."""
