"""The client's side: a function, and one call that makes a zeroth-order client of it."""

from flwr.clientapp import ClientApp

from fedsim.flower.local import searcher
from fedsim.flower.mods import identify
from search.task import BOX, METHODS, cost


def client(context):
    """The client of the run's method."""
    return METHODS[context.run_config["method"]][1]


app = ClientApp()
searcher(app, client, cost, kind="numpy", bounds=BOX)
identify(app)
