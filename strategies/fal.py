"""FAL: federated adversarial learning, FedAvg of clients that train on attacked examples.

theta <- theta + eta_global * (1/k) sum_i Delta_i,  Delta_i = y_i - theta after the local steps of `defences.standard`
Uplink and downlink d floats a client. Li, Song and Yang 2023. Stated there: clients alternate between attacking their
examples and steps on them, and the server averages their updates. Reconstructed, as the order of algorithm 1's lines is
not published in another form: each local step attacks the current local model; eta_global scales a uniform mean.
"""

from __future__ import annotations

from fedsim.server import Averaging, Weighting, options


@options
class FAL(Averaging):
    """eta_global is `server_lr`. What clients defend against is their option `adversarial`."""

    weighting: Weighting = "uniform"
