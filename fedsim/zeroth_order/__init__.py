"""What zeroth-order algorithms share: directions, codes of scalars, replayed logs and perturbed parameters."""
