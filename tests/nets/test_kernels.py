"""What bitwise reproducibility rests on: rows of batched products do not depend on their company or their place."""

from __future__ import annotations

import os

import pytest
import torch

from fedsim.parallel.cores import one_core_an_operation

COMPANY = (1, 3, 7, 29)


@pytest.mark.skipif(os.environ.get("MKL_CBWR") != "AVX2,STRICT", reason="MKL_CBWR is set to something else")
@pytest.mark.parametrize("batch", [2, 5, 16, 33, 64])
@pytest.mark.parametrize(("inputs", "outputs"), [(20, 10), (64, 33), (33, 10), (20, 1), (1, 10)])
def test_rows_do_not_depend_on_their_company(batch, inputs, outputs):
    generator = torch.Generator().manual_seed(batch)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(30, *shape, generator=generator)

    x, w, b, delta = drawn(batch, inputs), drawn(outputs, inputs), drawn(1, outputs), drawn(batch, outputs)
    products = {
        "forward": (lambda b, x, w: torch.baddbmm(b, x, w.mT), (b, x, w)),
        "backward": (lambda delta, w: torch.bmm(delta, w), (delta, w)),
        "update": (lambda w, delta, x: w.clone().baddbmm_(delta.mT, x, beta=0.9, alpha=-0.1), (w, delta, x)),
        "bias": (lambda b, delta: b.clone().add_(delta.sum(dim=1, keepdim=True), alpha=-0.1), (b, delta)),
        "loss": (lambda weight, loss: torch.bmm(weight.unsqueeze(1), loss.unsqueeze(2)), (x[:, :, 0], delta[:, :, 0])),
    }
    with one_core_an_operation():
        for name, (product, operands) in products.items():
            whole = product(*operands)
            for count in COMPANY:
                for first in range(0, 30 - count + 1, 5):
                    rows = slice(first, first + count)
                    assert torch.equal(product(*(part[rows].clone() for part in operands)), whole[rows]), name
