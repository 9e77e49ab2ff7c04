"""Other ways to run the same federated averaging, for the benchmark table: they share no code with fedsim."""
