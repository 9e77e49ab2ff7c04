"""SecAgg+: the server sees only the sum; one of five clients may fall silent before it sends its vector."""

import numpy as np
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import ServerApp


class Numbers(NumPyClient):
    """Its model is its partition's number, twice; it has one example more than that."""

    def __init__(self, partition, fail):
        self.partition, self.fail = partition, fail

    def fit(self, parameters, config):
        """Answer, or not."""
        if self.partition == self.fail:
            raise RuntimeError("fell silent")
        return [np.full(2, float(self.partition))], self.partition + 1, {}


client = ClientApp(
    client_fn=lambda context: Numbers(context.node_config["partition-id"], context.run_config["fail"]).to_client(),
    mods=[secaggplus_mod],
)
server = ServerApp()


@server.main()
def main(grid, context):
    """One round of the protocol."""
    strategy = FedAvg(fraction_evaluate=0.0, initial_parameters=ndarrays_to_parameters([np.zeros(2)]))
    legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=1), strategy=strategy)
    DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(num_shares=5, reconstruction_threshold=3))(grid, legacy)
