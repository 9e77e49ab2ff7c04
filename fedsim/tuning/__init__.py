"""Search over hyper-parameters, on Optuna; what a search came to is `fedsim.running.study`."""
