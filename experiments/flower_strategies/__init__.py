"""Strategies of ours in a Flower app: wherever it runs it is the same run, and asynchronous ones are ahead in time."""
