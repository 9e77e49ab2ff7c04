"""Differential privacy: wrappers of a strategy; updates are clipped at the server, or at the client by a mod."""

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
)


def _train(message, context):
    """Move along axis 0 by ten times the partition's number, from 1."""
    (model,) = message.content["arrays"].to_numpy_ndarrays()
    moved = model + 10.0 * (context.node_config["partition-id"] + 1) * np.array([1.0, 0.0])
    content = {"arrays": ArrayRecord([moved]), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)


plain, clipping, server = ClientApp(), ClientApp(mods=[fixedclipping_mod]), ServerApp()
plain.train()(_train)
clipping.train()(_train)
WRAPPERS = {
    "server": DifferentialPrivacyServerSideFixedClipping,
    "client": DifferentialPrivacyClientSideFixedClipping,
}


@server.main()
def main(grid, context):
    """One round, clipped to norm 15."""
    config = context.run_config
    strategy = WRAPPERS[config["side"]](FedAvg(fraction_evaluate=0.0), config["noise"], 15.0, 4)
    strategy.start(grid, ArrayRecord([np.zeros(2)]), num_rounds=1)
