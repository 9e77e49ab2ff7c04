"""What liars do to FedAvg with each aggregator; `liars.toml` also runs alone."""
