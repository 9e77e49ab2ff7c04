"""FZooS against everything it is compared with; see `experiments.fzoos.study`."""
