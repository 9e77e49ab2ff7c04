"""The model, the data and the loop of training, as an app of anybody has them."""

from collections.abc import Callable, Iterable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset


def make_model() -> nn.Module:
    """A network of 32 hidden units."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def digits(held_out: bool) -> TensorDataset:
    """Every fifth example, which is held out, or the others."""
    data = load_digits()
    mine = (torch.arange(len(data.target)) % 5 == 0) == held_out
    return TensorDataset(torch.tensor(data.data, dtype=torch.float32)[mine] / 16, torch.tensor(data.target)[mine])


def load_data(partition: int, partitions: int) -> TensorDataset:
    """A client's examples: sorted by class and cut into two pieces a client, of which it has two that lie far apart."""
    x, y = digits(held_out=False).tensors
    pieces = torch.argsort(y, stable=True).tensor_split(2 * partitions)
    mine = torch.cat((pieces[partition], pieces[partitions + partition]))
    return TensorDataset(x[mine], y[mine])


def fit(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    correct: Callable[[nn.Module, torch.optim.Optimizer], None] | None = None,
) -> float:
    """Train; the mean loss of the steps. correct: what a method has to do to the gradients before each step."""
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        if correct is not None:
            correct(model, optimizer)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def judge(model: nn.Module, data: TensorDataset) -> tuple[Tensor, float]:
    """The losses of all examples [N], and the share that is right."""
    x, y = data.tensors
    outputs = model(x)
    losses = nn.functional.cross_entropy(outputs, y, reduction="none")
    return losses, (outputs.argmax(1) == y).float().mean().item()
