"""FedAvg and FedDF, whose server distils, on clients of few classes: in ten rounds, and in one."""
