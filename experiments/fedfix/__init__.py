"""FedFix's comparison of servers that wait, that step at fixed times, and that step with the replies.

Fraboni, Vidal, Kameni, Lorenzi 2023, "A general theory for federated optimization with asynchronous and heterogeneous
clients updates". `python -m experiments.fedfix`; each of the files also runs alone.
"""
