"""`python -m fedsim` is the `fedsim` command."""

from fedsim_lab import main

main()
