"""The tables of the contract: its rows, and for each option of a plug-in another value that must change the run.

A row is a set of tables of an experiment. Those of methods that ask for values only are also run on functions. Many
rows vary the server alone, or clients alone; `held_to` says which checks are about what a row varies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import takewhile
from typing import Any

import pytest

from fedsim.testing import checks
from fedsim.testing.others import ESTIMATED, LOCAL, PGD, REPORTED, SEARCHING, STEPPING, VALUES_ONLY, Others
from fedsim.testing.problems import TRAINING
from fedsim.testing.subject import Path, Subject

SPREAD = {"compute": {"kind": "fixed", "spread": 80.0}}
ALL = {"kind": "uniform", "fraction": 1.0}
OBSERVED = {"frequency": "observed"}
CODED = {"compute": {"kind": "bursty", "enter": 0.1, "leave": 0.6}, "per": "step", "overhead": 2.0}
ASYNCHRONOUS: dict[str, Any] = {"devices": SPREAD, "selection": ALL, "rounds": 9, "evaluation": {"every": 3}}
SEARCH: dict[str, Any] = {"steps": 3, "lr": 0.05}
FEW = {"count": 4, "mu": 0.1}
SURROGATE = {
    "features": 200, "feature_points": 40, "history": 60, "neighbours": 20, "candidates": 12, "last_candidates": 12,
    "last_active": 4,
}  # fmt: skip
SCAFFOLD_ZO = {"kind": "scaffold_zo", **SEARCH, "estimator": {"kind": "differences", **FEW}}

ONE_BYTE: dict[str, dict[str, Any]] = {
    "strategy": {"kind": "one_byte", "samples": 2},
    "client": {"kind": "one_byte", "mu": 0.1},
}
FEDKSEED: dict[str, dict[str, Any]] = {
    "strategy": {"kind": "fedkseed", "pool": 16},
    "client": {"kind": "fedkseed", "steps": 3, "mu": 0.1},
}
DECOMFL: dict[str, dict[str, Any]] = {
    "strategy": {"kind": "decomfl", "steps": 2, "perturbations": 2},
    "client": {"kind": "decomfl", "mu": 0.1},
}
FEDES: dict[str, dict[str, Any]] = {
    "strategy": {"kind": "fedes", "population": 6, "sigma": 0.1},
    "client": {"kind": "fedes"},
}
CBO: dict[str, dict[str, Any]] = {
    "strategy": {"kind": "cbo", "particles": 6, "dt": 0.1, "sigma": 1.0},
    "client": {"kind": "values"},
}
GENETIC: dict[str, Any] = {
    "strategy": {"kind": "genetic", "population": 6, "truncation": 3, "candidates": 3, "power": 0.02, "spread": 0.2},
    "client": {"kind": "genetic"},
    "rounds": 4,
}


def fedzo(client: dict[str, Any] | None = None, estimator: str = "differences", **options: Any) -> dict[str, Any]:
    """A row of FedZO with an estimator; client: other options of the client."""
    table = {"kind": "fedzo", **SEARCH, "estimator": {"kind": estimator, **options}, **(client or {})}
    return {"strategy": {"kind": "fedzo"}, "client": table}


def defended(kind: str = "standard", attack: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """A client's table with a defence. attack: other options of it; options: of the defence."""
    attacked = {name: given for name, given in (PGD | (attack or {})).items() if given is not None}
    return {"kind": "sgd", **TRAINING, "adversarial": {"kind": kind, "attack": attacked, **options}}


def fzoos(strategy: dict[str, Any] | None = None, **client: Any) -> dict[str, Any]:
    """A row of FZooS."""
    return {
        "strategy": {"kind": "fzoos", **(strategy or {})},
        "client": {"kind": "fzoos", **SEARCH, **SURROGATE, **client},
    }


BODY: dict[str, Any] = {"problem": {"shared": "body"}}
HEAD: dict[str, Any] = {"problem": {"shared": "head"}, **ASYNCHRONOUS}
DITTO = {"kind": "ditto", **TRAINING, "lam": 0.5}
PFEDME = {"kind": "pfedme", **TRAINING, "lr": 0.02, "inner_lr": 0.05}
PERFEDAVG = {"kind": "perfedavg", **TRAINING, "inner_lr": 0.1}
WITHOUT_RATE = {"kind": "sgd", "epochs": 2, "batch_size": 4}
DISTILLING: dict[str, Any] = {"steps": 5, "batch_size": 8, "lr": 0.01}
NESTEROV = {"kind": "sgd", "momentum": 0.9, "nesterov": True}
ROWS: dict[str, dict[str, Any]] = {
    "fedavg": {"strategy": {"kind": "fedavg"}},
    "fedavgm": {"strategy": {"kind": "fedavg", "server_optimizer": {"kind": "sgd", "momentum": 0.9}}},
    "fedadam": {"strategy": {"kind": "fedavg", "server_lr": 0.1, "server_optimizer": "adam"}},
    "server_lion": {
        "strategy": {"kind": "fedavg", "server_lr": 0.02, "server_optimizer": "lion", "server_weight_decay": 0.1},
    },
    "fedprox": {"strategy": {"kind": "fedprox", "proximal_mu": 0.5}},
    "scaffold": {"strategy": {"kind": "scaffold"}, "client": {"kind": "scaffold", **TRAINING}},
    "fednova": {"strategy": {"kind": "fednova"}},
    "feddf": {"strategy": {"kind": "feddf", **DISTILLING}},
    "feddf_probabilities": {
        "strategy": {
            "kind": "feddf", **DISTILLING, "teacher": "probabilities", "optimizer": "sgd", "server_optimizer": "adagrad"
        },
        "aggregation": "median",
    },
    "qfedavg": {"strategy": {"kind": "qfedavg"}},
    "term": {"strategy": {"kind": "term"}},
    "afl": {"strategy": {"kind": "afl"}},
    "feddyn": {"strategy": {"kind": "feddyn", "alpha": 0.1}, "client": {"kind": "feddyn", **TRAINING}},
    "local": {"strategy": "local", "client": {"kind": "local", **TRAINING}},
    "fedproto": {"strategy": {"kind": "fedproto"}, "client": {"kind": "fedproto", **TRAINING}},
    "dpsgd": {"strategy": {"kind": "dpsgd"}, "client": {"kind": "dpsgd", **TRAINING}},
    "gradient_tracking": {
        "strategy": {"kind": "gradient_tracking", "graph": "torus"},
        "client": {"kind": "gradient_tracking", **TRAINING},
    },
    "push_sum": {"strategy": {"kind": "push_sum"}, "client": {"kind": "push_sum", **TRAINING}},
    "random_walk": {
        "strategy": {"kind": "random_walk"}, "client": {"kind": "random_walk", **TRAINING}, "selection": ALL
    },
    "gradient_coding": {
        "strategy": {"kind": "gradient_coding", "server_lr": 0.5}, "client": "gradient_coding", "selection": ALL,
        "devices": CODED,
    },
    "gradient_coding_bursts": {
        "strategy": {"kind": "gradient_coding", "code": "m_sgc", "server_lr": 0.5, "server_optimizer": "adagrad"},
        "client": "gradient_coding", "selection": ALL, "devices": CODED, "rounds": 6,
    },
    "fedproto_examples": {
        "strategy": {"kind": "fedproto", "weights": "examples"},
        "client": {"kind": "fedproto", **TRAINING, "predict": "head"},
    },
    "moon": {"client": {"kind": "moon", **TRAINING}},
    "moon_async": {"strategy": {"kind": "fedbuff", "size": 3}, "client": {"kind": "moon", **TRAINING}, **ASYNCHRONOUS},
    "momentum": {"client": {"kind": "sgd", **TRAINING, "optimizer": NESTEROV}},
    "adam": {"client": {"kind": "sgd", **TRAINING, "lr": 0.01, "optimizer": "adam", "weight_decay": 0.1}},
    "lion": {"client": {"kind": "sgd", **TRAINING, "lr": 0.01, "optimizer": "lion", "weight_decay": 0.1}},
    "amsgrad": {"client": {"kind": "sgd", **TRAINING, "lr": 0.01, "optimizer": "amsgrad"}},
    "adabelief": {"client": {"kind": "sgd", **TRAINING, "lr": 0.01, "optimizer": "adabelief"}},
    "diffgrad": {"client": {"kind": "sgd", **TRAINING, "lr": 0.01, "optimizer": "diffgrad"}},
    "adagrad": {"client": {"kind": "sgd", **TRAINING, "optimizer": "adagrad"}},
    "adahessian": {"client": {"kind": "sgd", **TRAINING, "lr": 0.01, "optimizer": "adahessian", "weight_decay": 0.1}},
    "oasis": {"client": {"kind": "sgd", **TRAINING, "lr": 0.01, "optimizer": "oasis"}},
    "ai_sarah": {"client": {"kind": "sgd", **TRAINING, "lr": 0.1, "optimizer": {"kind": "ai_sarah", "gamma": 0.99}}},
    "dog": {"client": {**WITHOUT_RATE, "optimizer": {"kind": "dog", "distance": "client", "average": True}}},
    "l_dog": {"client": {**WITHOUT_RATE, "optimizer": {"kind": "l_dog", "average": True}}},
    "a_dog": {"client": {**WITHOUT_RATE, "optimizer": "a_dog"}},
    "u_dog": {"client": {**WITHOUT_RATE, "optimizer": "u_dog"}},
    "muon": {"client": {"kind": "sgd", **TRAINING, "lr": 0.05, "optimizer": "muon", "weight_decay": 0.1}},
    "steepest": {"client": {"kind": "sgd", **TRAINING, "lr": 0.05, "optimizer": "steepest", "weight_decay": 0.1}},
    "adagrad_norm": {"client": {"kind": "sgd", **TRAINING, "optimizer": "adagrad_norm"}},
    "normalised": {"client": {"kind": "sgd", **TRAINING, "optimizer": "normalised"}},
    "induced": {"client": {"kind": "sgd", **TRAINING, "optimizer": {"kind": "induced", "metric": "rms"}}},
    "sania": {"client": {"kind": "sgd", **TRAINING, "lr": 1.0, "optimizer": "sania"}},
    "lanton": {"client": {"kind": "sgd", **TRAINING, "lr": 0.05, "optimizer": "lanton", "weight_decay": 0.1}},
    "frugal": {"client": {"kind": "sgd", **TRAINING, "lr": 0.01, "optimizer": {"kind": "frugal", "gap": 2}}},
    "ivon": {"client": {"kind": "sgd", **TRAINING, "optimizer": {"kind": "ivon", "samples": 2, "precision": "client"}}},
    "fedivon": {"strategy": {"kind": "fedivon"}, "client": {"kind": "sgd", **TRAINING, "optimizer": "ivon"}},
    "sam": {"client": {"kind": "sgd", **TRAINING, "optimizer": {"kind": "sam", "adaptive": True, "base": NESTEROV}}},
    "sso": {"client": {"kind": "sgd", **TRAINING, "optimizer": "sso"}},
    "egn": {"client": {"kind": "sgd", **TRAINING, "optimizer": {"kind": "egn", "momentum": 0.5, "scale": 0.1}}},
    "steps": {"client": {"kind": "sgd", "steps": 5, "batch_size": 4, "clip_norm": 0.3, "weight_decay": 0.01}},
    "median": {"aggregation": "median"},
    "ef21": {
        "strategy": {"kind": "ef21"},
        "transforms": [{"kind": "ef21", "arrives": "increment"}, {"kind": "top_k", "ratio": 0.2}],
    },
    "ef21_both_ways": {
        "strategy": {"kind": "ef21", "downlink": {"kind": "qsgd", "levels": 8, "contract": True}},
        "transforms": [{"kind": "ef21", "arrives": "increment"}, {"kind": "top_k", "ratio": 0.2}],
    },
    "ef14": {"strategy": "fedasync", "transforms": [{"kind": "ef14"}, {"kind": "sign"}], **ASYNCHRONOUS},
    "ef21_of_orders": {"order_transforms": [{"kind": "ef21", "init": "dense"}, {"kind": "low_rank", "rank": 1}]},
    "orders": {"order_transforms": [{"kind": "noise", "std": 0.01}]},
    "noise": {"transforms": [{"kind": "clip", "max_norm": 0.1}, {"kind": "noise", "std": 0.01}]},
    "deadline": {"strategy": {"kind": "fedavg", "deadline": 0.6}, "devices": SPREAD},
    "fedfix": {"strategy": {"kind": "fedfix"}, **ASYNCHRONOUS},
    "empty windows": {
        "strategy": {"kind": "fedfix", "window": 0.3},
        "client": {"kind": "sgd", "steps": 3, "batch_size": 2},
        **ASYNCHRONOUS,
        "devices": {},
    },
    "fedfix_adam": {
        "strategy": {"kind": "fedfix", "frequency": "observed", "server_lr": 0.1, "server_optimizer": "adam"},
        "client": {"kind": "sgd", **TRAINING, "proximal_mu": 0.5},
        **ASYNCHRONOUS,
        "selection": {"kind": "uniform", "count": 4},
    },
    "fedavg_async": {"strategy": {"kind": "fedavg_async"}, **ASYNCHRONOUS},
    "fedbuff": {"strategy": {"kind": "fedbuff", "size": 3}, **ASYNCHRONOUS},
    "fedbuff_window": {
        "strategy": {"kind": "fedbuff", "size": 3, "restart": "window", "weights": "unbiased"},
        **ASYNCHRONOUS,
        "aggregation": "median",
    },
    "fedasync": {"strategy": {"kind": "fedasync"}, **ASYNCHRONOUS},
    "secure": {
        "strategy": {"kind": "fedavg", "weighting": "uniform"},
        "selection": ALL,
        "aggregation": {"kind": "secure", "clip": 1.0, "neighbours": 4, "threshold": 3},
    },
    "norm_test": {
        "strategy": {"kind": "fedavg", "batch_rule": {"kind": "norm_test", "eta": 1.0}},
        "client": {"kind": "sgd", "epochs": 2, "batch_size": 2, "lr": 0.1},
    },
    "schedule": {
        "strategy": {"kind": "fedbuff", "size": 3},
        "client": {"kind": "sgd", **TRAINING, "schedule": {"kind": "exponential", "gamma": 0.9}},
        **ASYNCHRONOUS,
        "transforms": [{"kind": "noise", "std": 0.01}],
    },
    "fedzo": fedzo(**FEW),
    "fedzo_guard": fedzo({"lr": 0.5}, **FEW) | {"strategy": {"kind": "fedzo", "guard": True}},
    "fedzo_batches": fedzo({"batch_size": 4, "proximal_mu": 0.5}, **FEW),
    "fedzo_sgd": fedzo({"optimizer": "sgd", "schedule": {"kind": "exponential", "gamma": 0.9}}, **FEW),
    "fedzo_buffered": {**fedzo(**FEW), "strategy": {"kind": "fedbuff", "size": 3}, **ASYNCHRONOUS},
    "central": fedzo(**FEW, difference="central", directions="rademacher"),
    "sphere": fedzo(**FEW, directions="sphere"),
    "segmented": fedzo(**FEW, difference="central", directions="segmented"),
    "orthonormal": fedzo(**FEW, directions="orthonormal", scaling="plain"),
    "coordinates": fedzo(**FEW, difference="central", directions="coordinate"),
    "spsa": fedzo(estimator="spsa", count=2, c=0.1),
    "spsa_gc": fedzo(estimator="spsa_gc", count=2, c=0.1),
    "residual": fedzo(estimator="residual"),
    "process": fedzo(estimator="gaussian_process", active=3, history=8, neighbours=6),
    "prior": fedzo(estimator="prior", **FEW, samples=3),
    "forward_gradient": fedzo(
        {"batch_size": 4}, "forward_gradient", count=3, guess="momentum"
    ),
    "scaffold_zo": {"strategy": {"kind": "scaffold_zo"}, "client": SCAFFOLD_ZO},
    "scaffold_zo_average": {
        "strategy": {"kind": "scaffold_zo", "variant": "average", "guard": True},
        "client": SCAFFOLD_ZO | {"batch_size": 4},
    },
    "fzoos": fzoos(),
    "fzoos_alone": fzoos({"correction": False}),
    "fzoos_guard": fzoos({"guard": True}, lr=0.5),
    "fzoos_inverse": fzoos(decay="inverse", kernel="rbf"),
    "fzoos_adaptive": fzoos(decay="adaptive"),
    "fzoos_random": fzoos(selection="random"),
    "one_byte": ONE_BYTE,
    "one_byte_sign": {
        "strategy": {**ONE_BYTE["strategy"], "codec": "sign", "agg": "sqrt"},
        "client": {**ONE_BYTE["client"], "batch_size": 4},
    },
    "one_byte_float": {**ONE_BYTE, "strategy": {**ONE_BYTE["strategy"], "codec": "fp32", "join": "replay"}},
    "fedkseed": FEDKSEED,
    "fedkseed_dense": {
        "strategy": {**FEDKSEED["strategy"], "reply": "dense"},
        "client": {**FEDKSEED["client"], "batch_size": 4},
    },
    "fedkseed_pro": {**FEDKSEED, "strategy": {**FEDKSEED["strategy"], "sampling": "importance", "start": "public"}},
    "decomfl": DECOMFL,
    "decomfl_forward": {
        "strategy": {**DECOMFL["strategy"], "history": 1},
        "client": {**DECOMFL["client"], "difference": "forward", "batch_size": 4},
    },
    "fedes": FEDES,
    "fedes_losses": {
        "strategy": {**FEDES["strategy"], "downlink": "losses", "ranks": False, "antithetic": False},
        "client": {**FEDES["client"], "batch_size": 4},
    },
    "fedes_orthogonal": {
        "strategy": {**FEDES["strategy"], "orthogonal": True, "server_optimizer": "adam", "server_weight_decay": 0.1},
        "client": FEDES["client"],
    },
    "evofed": {
        "strategy": {"kind": "evofed", "population": 6, "blocks": 2},
        "client": {"kind": "evofed", **TRAINING},
    },
    "evofed_fitness": {
        "strategy": {"kind": "evofed", "population": 6, "form": "fitness", "sigma": 0.01, "directions": "rademacher"},
        "client": {"kind": "evofed", **TRAINING},
    },
    "cma_es": {
        "strategy": {"kind": "cma_es", "population": 6},
        "client": {"kind": "values"},
    },
    "direct_search": {
        "strategy": {"kind": "direct_search", "radius": 0.1, "again": 2},
        "client": {"kind": "values"},
    },
    "direct_search_guided": {
        "strategy": {"kind": "direct_search", "radius": 0.1, "poll": "n+1", "guide": {"kind": "fitted", "history": 5}},
        "client": {"kind": "values"},
    },
    "cma_es_diagonal": {
        "strategy": {"kind": "cma_es", "diagonal": True},
        "client": {"kind": "values", "batch_size": 4},
    },
    "cma_es_margin": {"strategy": {"kind": "cma_es_margin", "population": 6}, "client": {"kind": "values"}},
    "genetic": GENETIC,
    "genetic_split": {
        **GENETIC,
        "strategy": {**GENETIC["strategy"], "evaluators": 2, "candidates": 0},
        "client": {"kind": "genetic", "batch_size": 4},
    },
    "cbo": CBO,
    "cbo_share": {**CBO, "strategy": {**CBO["strategy"], "share": 0.5, "noise": "isotropic"}},
    "fedcbo": {
        "strategy": {"kind": "fedcbo", "peers": 3},
        "client": {"kind": "fedcbo", **TRAINING, "noise": 0.1},
    },
    "fedper": BODY,
    "fedrep": {"client": {"kind": "fedrep", **TRAINING, "head_epochs": 1}, **BODY},
    "fedbabu": {"client": {"kind": "fedrep", **TRAINING, "head_epochs": 0}, **BODY},
    "lg_fedavg_async": {"strategy": {"kind": "fedbuff", "size": 3}, **HEAD},
    "fedrep_async": {
        "strategy": {"kind": "fedfix", "window": 0.3},
        "client": {"kind": "fedrep", **TRAINING, "head_epochs": 1},
        **HEAD,
    },
    "ifca": {"strategy": {"kind": "ifca"}, "client": {"kind": "ifca", **TRAINING}},
    "ifca_gradient": {
        "strategy": {"kind": "ifca", "averaging": "gradient", "spread": 0.5, "server_optimizer": "adam", "clusters": 3},
        "client": {"kind": "ifca", "steps": 1, "batch_size": "full"},
    },
    "fedala": {"client": {"kind": "fedala", **TRAINING, "tensors": 3}},
    "fedala_async": {
        "strategy": {"kind": "fedbuff", "size": 3},
        "client": {"kind": "fedala", **TRAINING},
        **ASYNCHRONOUS,
    },
    "standard": {"client": defended()},
    "curriculum": {"client": {"kind": "sgd", **TRAINING, "curriculum": {"score": "both", "floor": 1}}},
    "curriculum_async": {
        "strategy": {"kind": "fedfix", "window": 0.3},
        "client": {"kind": "sgd", **TRAINING, "curriculum": {"order": "anti", "floor": 1}},
        **ASYNCHRONOUS,
    },
    "client_curriculum": {
        "selection": {"kind": "curriculum", "count": 2, "rounds": 6, "pacing": {"kind": "sqrt", "b": 0.5}},
        "client": {"kind": "sgd", **TRAINING, "curriculum": {"floor": 1}},
    },
    "standard_mix": {"client": defended(mix=0.5, growth={"kind": "rise", "rounds": 3, "begin": 0.2})},
    "trades": {"client": defended("trades")},
    "mart": {"client": defended("mart")},
    "calfat": {"strategy": "fal", "client": defended("calfat")},
    "dbfat": {"client": defended("dbfat")},
    "ibp": {"client": {"kind": "sgd", **TRAINING, "adversarial": {"kind": "ibp", "epsilon": 0.2, "domain": "none"}}},
    "mtl_ibp": {"client": defended("mtl_ibp")},
    "cc_ibp": {"client": defended("cc_ibp")},
    "exp_ibp": {"client": defended("exp_ibp")},
    "pgd_l2": {"client": defended(attack={"norm": "l2", "restarts": 2, "best": True})},
    "fgsm": {"client": defended(attack={"kind": "fgsm", "steps": None})},
    "mim": {"client": defended(attack={"kind": "mim"})},
    "cw": {"client": defended(attack={"kind": "cw"})},
    "fal": {"strategy": {"kind": "fal"}, "client": defended()},
    "sfat": {"strategy": {"kind": "sfat"}, "client": defended()},
    "sfat_published": {"strategy": {"kind": "sfat", "normalisation": "published", "khat": 2}, "client": defended()},
    "scaffold_adversarial": {"strategy": "scaffold", "client": {**defended(), "kind": "scaffold"}},
    "fedfix_adversarial": {"strategy": {"kind": "fedfix"}, "client": defended("dbfat"), **ASYNCHRONOUS},
    "ditto": {"client": DITTO},
    "ditto_async": {
        "strategy": {"kind": "fedbuff", "size": 3},
        "client": DITTO | {"own_batches": True},
        **ASYNCHRONOUS,
    },
    "pfedme": {"client": PFEDME},
    "apfl": {"client": {"kind": "apfl", **TRAINING, "adaptive": True}},
    "apfl_outputs": {
        "strategy": {"kind": "fedasync"},
        "client": {"kind": "apfl", **TRAINING, "mix": "outputs", "adaptive": True, "alpha_decay": 0.02},
        **ASYNCHRONOUS,
    },
    "perfedavg": {"client": PERFEDAVG},
    "perfedavg_hf": {
        "strategy": {"kind": "fedavg_async"}, "client": PERFEDAVG | {"form": "hf"}, **ASYNCHRONOUS
    },
}  # fmt: skip
# Options of a row's plug-in, and for each another value with what it needs to matter.
MANY = {"rounds": 60}
"""Of a search that tries one point a round."""
AWAY = {"rounds": 6, "selection": {"kind": "uniform", "count": 2}}
STRATEGIES: dict[str, Others] = {
    "fedavg": {
        "weighting": ("uniform", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "server_weight_decay": (0.1, {}),
        "deadline": (0.5, {"devices": SPREAD}),
        "first": (2, {}),
        "batch_rule": ({"kind": "norm_test", "eta": 0.1}, {}),
    },
    "fedfix": {
        "weighting": ("uniform", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "server_weight_decay": (0.1, {}),
        "window": (0.3, {}),
        "weights": ("identical", {}),
        # Where durations are fixed, what is observed is what was declared.
        "frequency": ("observed", {"devices": {**SPREAD, "jitter": 0.5}}),
        "floor": (0.9, {"frequency": "observed"}),
    },
    "fedavg_async": {
        "weighting": ("uniform", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "server_weight_decay": (0.1, {}),
        "weights": ("identical", {}),
        "frequency": ("observed", {}),
        "floor": (0.9, {"frequency": "observed"}),
    },
    "fedbuff": {
        "weighting": ("uniform", {"weights": "unbiased"}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "server_weight_decay": (0.1, {}),
        "size": (2, {}),
        "restart": ("window", {}),
        "staleness": ("constant", {}),
        "weights": ("unbiased", {}),
        "floor": (0.9, {"weights": "unbiased"}),
    },
    "fedasync": {
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "server_weight_decay": (0.1, {}),
        "alpha": (0.3, {}),
        "staleness": ("constant", {}),
        "max_staleness": (3, {}),
        "proximal_mu": (0.9, {}),
    },
    "fedprox": {
        "weighting": ("uniform", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("yogi", {}),
        "server_weight_decay": (0.1, {}),
        "proximal_mu": (0.9, {}),
    },
    "scaffold": {
        "weighting": ("examples", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "server_weight_decay": (0.1, {}),
    },
    "fedivon": {
        "weighting": ("uniform", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adam", {}),
        "server_weight_decay": (0.1, {}),
    },
    "fednova": {
        "weighting": ("uniform", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adam", {}),
        "server_weight_decay": (0.1, {}),
    },
    "feddf": {
        "weighting": ("uniform", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "server_weight_decay": (0.1, {}),
        "steps": (3, {}),
        "batch_size": (5, {}),
        "lr": (0.02, {}),
        "optimizer": ("sgd", {}),
        "temperature": (2.0, {}),
        "teacher": ("probabilities", {}),
        "teacher_weighting": ("examples", {}),
    },
    "qfedavg": {
        "weighting": ("examples", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "server_weight_decay": (0.1, {}),
        "q": (2.0, {}),
        "client_lr": (0.2, {}),
    },
    "term": {
        "weighting": ("uniform", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "server_weight_decay": (0.1, {}),
        "t": (-1.0, {}),
    },
    "afl": {
        "weighting": ("examples", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "server_weight_decay": (0.1, {}),
        "lambda_lr": (0.5, {}),
    },
    "ef21": {
        "weighting": ("examples", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "server_weight_decay": (0.1, {}),
        "downlink": ({"kind": "low_rank", "rank": 1}, {}),
    },
    "feddyn": {"alpha": (0.2, {})},
    "local": {},
    "fedproto": {"weights": ("examples", {})},
    "dpsgd": {"graph": ("complete", {}), "combine": ("before", {})},
    "gradient_tracking": {"graph": ("complete", {})},
    "push_sum": {"graph": ("complete", {})},
    "gradient_coding": {
        "server_lr": (0.25, {}),
        "server_optimizer": ("adagrad", {}),
        "server_weight_decay": (0.1, {}),
        "code": ("m_sgc", {}),
    },
    "gradient_coding_bursts": {
        "server_lr": (0.25, {}),
        "server_optimizer": ("adam", {}),
        "server_weight_decay": (0.1, {}),
        "code": ({"kind": "m_sgc", "burst": 2, "window": 3}, {}),
    },
    "random_walk": {
        "graph": ("complete", {}),
        "alpha": (0.0, {"rounds": 9}),
        "target": ("degree", {"graph": {"kind": "watts_strogatz", "p": 0.5}}),
        "weighting": ("uniform", {}),
        "step_power": (0.0, {}),
        "memory_power": (0.6, {"rounds": 9, "graph": "complete"}),
    },
    "fal": {
        "weighting": ("examples", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "server_weight_decay": (0.1, {}),
    },
    "sfat": {
        "weighting": ("uniform", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "server_weight_decay": (0.1, {}),
        "alpha": (0.5, {}),
        "khat": (2, {}),
        "normalisation": ("published", {}),
    },
    "fedzo": {
        "weighting": ("examples", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "server_weight_decay": (0.1, {}),
        "guard": (True, {"server_lr": 30.0}),
    },
    "scaffold_zo": {
        "weighting": ("examples", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "server_weight_decay": (0.1, {}),
        "guard": (True, {"server_lr": 30.0}),
        "variant": ("average", {}),
    },
    "fzoos": {
        "weighting": ("examples", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "server_weight_decay": (0.1, {}),
        "guard": (True, {"server_lr": 30.0}),
        "correction": (False, {}),
    },
    "one_byte": {
        "lr": (0.02, {}),
        "directions": ("rademacher", {}),
        "samples": (3, {}),
        "agg": ("sqrt", {}),
        "codec": ("fp32", {}),
    },
    "fedkseed": {
        "lr": (0.02, {}),
        "directions": ("rademacher", {}),
        "pool": (20, {}),
        "sampling": ("importance", {}),
    },
    "decomfl": {
        "lr": (0.02, {}),
        "directions": ("rademacher", {}),
        "steps": (3, {}),
        "perturbations": (3, {}),
    },
    "fedes": {
        "lr": (0.02, {}),
        "directions": ("rademacher", {}),
        "population": (8, {}),
        "sigma": (0.2, {}),
        "antithetic": (False, {}),
        "ranks": (False, {}),
        "orthogonal": (True, {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "server_weight_decay": (0.1, {}),
    },
    "evofed": {
        "lr": (0.5, {}),
        "directions": ("rademacher", {}),
        "population": (8, {}),
        "blocks": (3, {}),
        "form": ("fitness", {}),
        "sigma": (0.5, {"form": "fitness"}),
        "alpha": (0.4, {}),
        "decode": ("least_squares", {}),
        "weighting": ("uniform", {}),
    },
    "cma_es": {
        "weighting": ("examples", {}),
        "sigma": (0.5, {}),
        "population": (8, {}),
        "diagonal": (True, {}),
    },
    "cma_es_margin": {"weighting": ("examples", {}), "sigma": (0.5, {}), "population": (8, {})},
    "direct_search": {
        "weighting": ("examples", MANY),
        "radius": (0.5, {}),
        "least": (0.05, {**MANY, **VALUES_ONLY}),
        "most": (0.01, {"guide": "fitted", **MANY}),
        "poll": ("n+1", {**MANY, **VALUES_ONLY}),
        "covering": (False, {}),
        "sufficient": (1e3, {}),
        "again": (0, MANY),
        "guide": ("fitted", MANY),
        "attack": ("pgd", {"guide": "fitted", **MANY}),
    },
    "direct_search_guided": {
        "weighting": ("examples", MANY),
        "radius": (0.5, {}),
        "least": (0.05, {**MANY, **VALUES_ONLY}),
        "most": (0.01, MANY),
        "poll": ("2n", {**MANY, **VALUES_ONLY}),
        "covering": (False, {}),
        "sufficient": (1e3, {}),
        "again": (2, MANY),
        "guide": (None, MANY),
        "attack": ("pgd", MANY),
    },
    "genetic": {
        "weighting": ("uniform", {}),
        "population": (8, {}),
        "truncation": (1, {"rounds": 8}),
        "power": (0.2, {}),
        "spread": (0.5, {}),
        "candidates": (0, {}),
        "repeats": (3, {"spread": 1e-3, "power": 1e-3, **VALUES_ONLY}),
        "evaluators": (1, {}),
        "quorum": (4, {"devices": {"availability": {"kind": "bernoulli", "probability": 0.6, "period": 1.0}}}),
    },
    "cbo": {
        "weighting": ("examples", {}),
        "particles": (8, {}),
        "drift": (0.5, {}),
        "sigma": (2.0, {}),
        "noise": ("isotropic", {}),
        "dt": (0.2, {}),
        "alpha": (5.0, {}),
        "growth": (2.0, {}),
        "most": (1.0, {"alpha": 2.0}),
        "share": (0.5, {}),
        "spread": (0.5, {}),
        "project": (False, {"sigma": 20.0, **VALUES_ONLY}),
    },
    "ifca": {
        "weighting": ("examples", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "server_weight_decay": (0.1, {}),
        "clusters": (3, {}),
        "averaging": ("gradient", {"client": {"kind": "ifca", "steps": 1, "batch_size": "full"}}),
        "spread": (0.5, {}),
    },
    "fedcbo": {
        "peers": (2, {}),
        "exploration": (1.0, {}),
        "decay": (0.4, {}),
        "least": (0.9, {}),
    },
}
IN_RANDOM_ORDER: Others = {"curriculum": ({"floor": 1, "order": "random"}, LOCAL["curriculum"][1])}
"""Of clients that no model is sent to, by which examples could be put in order."""
ARRANGED = ("adversarial", "curriculum")
"""Options of `LOCAL` that say which examples a step is about."""
STEPPED: Others = {name: other for name, other in LOCAL.items() if name not in ARRANGED}
"""Of clients that take steps of their own."""
SCALED = ("lr_scaling", "reference_batch")
CLIENTS: dict[str, Others] = {
    "fedavg": {**LOCAL, **STEPPING, "proximal_mu": (0.5, {})},
    "scaffold": LOCAL,
    "feddyn": {**LOCAL, **STEPPING},
    "moon": {**LOCAL, **STEPPING, "mu": (3.0, {}), "temperature": (2.0, {})},
    "local": {**LOCAL, **STEPPING, **IN_RANDOM_ORDER},
    "fedproto": {**LOCAL, **STEPPING, **IN_RANDOM_ORDER, "lam": (5.0, {}), "predict": ("head", {})},
    "dpsgd": {**LOCAL, **STEPPING, **IN_RANDOM_ORDER},
    "gradient_tracking": {**LOCAL, **STEPPING, **IN_RANDOM_ORDER},
    "push_sum": {**LOCAL, **STEPPING, **IN_RANDOM_ORDER},
    "random_walk": {**LOCAL, **STEPPING},
    "gradient_coding": {},
    "gradient_coding_bursts": {},
    "ditto": {
        **{name: other for name, other in LOCAL.items() if name != "curriculum"},
        **STEPPING,
        "lam": (0.1, {}),
        "personal_lr": (0.05, {}),
        "personal_epochs": (3, {}),
        "own_batches": (True, {}),
    },
    "pfedme": {
        **{name: other for name, other in STEPPED.items() if name not in SCALED},
        "weight_decay": (0.1, {}),
        "lam": (5.0, {}),
        "inner_lr": (0.02, {}),
        "inner_steps": (2, {}),
    },
    "apfl": {**STEPPED, "alpha": (0.2, {}), "mix": ("outputs", {}), "adaptive": (False, {}), "alpha_decay": (0.5, {})},
    "perfedavg": {
        **STEPPED,
        "inner_lr": (0.3, {}),
        "form": ("hf", {}),
        "radius": (1.0, {"form": "hf_difference"}),
    },
    "fedzo": {**ESTIMATED, "proximal_mu": (0.5, {})},
    "scaffold_zo": ESTIMATED,
    "fzoos": {
        **{name: other for name, other in SEARCHING.items() if name != "batch_size"},
        "gamma": (0.5, {}),
        "decay": ("inverse", {}),
        "kernel": ("rbf", {}),
        "profiled": (True, {}),
        "neighbours": (10, {}),
        "history": (25, {}),
        "initial": (5, {}),
        "active": (3, {}),
        "candidates": (8, {}),
        "radius": (0.1, {}),
        "last_active": (2, {}),
        "last_candidates": (8, {}),
        "selection": ("random", {}),
        "features": (100, {}),
        "feature_scale": (2.0, {}),
        "feature_points": (20, {}),
        "feature_seed": (1, {}),
        "noise": (1e-2, {}),
    },
    "one_byte": {"batch_size": (4, {}), "mu": (0.5, {}), "stochastic": (True, {})},
    "fedkseed": {"batch_size": (4, {}), "steps": (4, {}), "mu": (0.5, {}), "clip": (0.05, {})},
    "decomfl": {"batch_size": (4, {}), "mu": (0.5, {}), "difference": ("forward", {})},
    "fedes": {"batch_size": (4, {})},
    "evofed": {**LOCAL, **STEPPING, **IN_RANDOM_ORDER},
    "genetic": {"batch_size": (1, {})},
    "cma_es": {"batch_size": (1, {})},
    "direct_search": {"batch_size": (1, {})},
    "direct_search_guided": {"batch_size": (1, {})},
    "fedrep": {
        **{name: other for name, other in LOCAL.items() if name != "curriculum"},
        **STEPPING,
        "head_epochs": (2, {}),
        "head_steps": (3, {"head_epochs": None, "head_steps": 1}),
    },
    "ifca": {**LOCAL, **STEPPING},
    "fedala": {
        **LOCAL,
        **STEPPING,
        "eta": (0.1, {}),
        "tensors": (2, {}),
        "share": (0.4, {}),
        "first_passes": (2, {}),
    },
    "fedcbo": {**LOCAL, **STEPPING, "alpha": (1.0, {}), "pull": (0.9, {}), "noise": (0.5, {})},
}
SEGMENTED: Others = {
    "directions": ("rademacher", {}),
    "count": (3, {}),
    "c": (0.5, {}),
    "gamma": (0.5, {}),
    "offset": (5.0, {}),
    "alpha": (0.8, {}),
}
ESTIMATORS: dict[str, Others] = {
    "fedzo": {
        "difference": ("central", {}),
        "directions": ("sphere", {}),
        "count": (5, {}),
        "mu": (0.5, {}),
        "scaling": ("plain", {"directions": "sphere"}),
    },
    "spsa": SEGMENTED,
    "spsa_gc": {**SEGMENTED, "beta": (0.5, {}), "form": ("lookahead", {}), "reset": (True, {})},
    "residual": {"directions": ("sphere", {}), "mu": (0.5, {})},
    "process": {
        "active": (2, {}),
        "radius": (0.1, {}),
        "kernel": ("rbf", {}),
        "profiled": (True, {}),
        "neighbours": (4, {}),
        "history": (5, {}),
        "noise": (1e-2, {}),
    },
    "prior": {"weight": (0.5, {"samples": None}), "count": (5, {}), "mu": (0.5, {}), "samples": (5, {})},
    "forward_gradient": {
        "directions": ("rademacher", {}),
        "count": (4, {}),
        "guess": ("random", {}),
        "beta": (0.5, {}),
    },
}
DEFENDING: Others = {
    "attack": (PGD | {"epsilon": 0.1}, {}),
    "warm_up": (2, {}),
    "growth": ({"kind": "rise", "rounds": 3, "begin": 0.2}, {}),
}
AROUND: Others = {"elide": (False, {}), "l1": (0.01, {}), "classes": ("present", {})}
EXPRESSIVE: Others = {**DEFENDING, **AROUND, "alpha": (0.2, {}), "epsilon_factor": (0.5, {})}
EXPRESSIVE["growth"] = ({"kind": "rise", "rounds": 2, "begin": 0.2}, {})
DEFENCES: dict[str, Others] = {
    "standard": {**DEFENDING, "mix": (0.5, {})},
    "trades": {**DEFENDING, "beta": (2.0, {})},
    "mart": {**DEFENDING, "regularisation": (2.0, {})},
    "calfat": {**DEFENDING, "scale": (5.0, {}), "prior_weight": (0.5, {}), "attack_loss": ("own", {})},
    "dbfat": {**DEFENDING, "beta": (5.0, {}), "weights": ("equal", {})},
    "ibp": {
        **AROUND,
        "epsilon": (0.1, {}),
        "domain": ([-2.3, 1.6], {}),
        "kappa": (0.2, {}),
        "crown": (0.5, {"growth": {"kind": "rise", "rounds": 2, "begin": 0.5}}),
        "warm_up": (1, {}),
        "growth": ({"kind": "smooth", "rounds": 2}, {}),
    },
    "mtl_ibp": EXPRESSIVE,
    "cc_ibp": EXPRESSIVE,
    "exp_ibp": EXPRESSIVE,
}
FOLLOWING: Others = {
    "epsilon": (0.1, {}),
    "norm": ("l2", {}),
    "domain": ([-2.3, 1.6], {}),  # of the small problem's inputs, which lie between -2.29 and 1.54
}
ITERATING: Others = {"steps": (3, {}), "step_size": (0.1, {}), "restarts": (2, {}), "best": (True, {"step_size": 0.5})}
ATTACKS: dict[str, Others] = {
    "standard": {**FOLLOWING, **ITERATING, "random_start": (False, {}), "loss": ("margin", {})},
    "fgsm": {**FOLLOWING, "random_start": (True, {})},
    "mim": {
        **FOLLOWING,
        **ITERATING,
        "restarts": (2, {"random_start": True}),
        "random_start": (True, {}),
        "decay": (0.5, {}),
    },
    "cw": {**FOLLOWING, **ITERATING, "random_start": (False, {})},
}
MOMENTS: Others = {"beta1": (0.5, {}), "beta2": (0.5, {}), "epsilon": (0.1, {})}
FROM_DISTANCE: Others = {"reps_rel": (0.1, {}), "epsilon": (1.0, {})}
AVERAGING: Others = {**FROM_DISTANCE, "init_eta": (0.01, {}), "average": (False, {}), "gamma": (0.0, {})}
OPTIMIZERS: dict[str, Others] = {
    "momentum": {"momentum": (0.5, {}), "nesterov": (False, {})},
    "adam": {**MOMENTS, "decay": ("decoupled", {})},
    "amsgrad": {**MOMENTS, "variant": ("paper", {})},
    "adabelief": MOMENTS,
    "diffgrad": MOMENTS,
    "adagrad": {"initial": (1.0, {}), "epsilon": (0.1, {})},
    "adagrad_norm": {"initial": (1.0, {}), "epsilon": (0.1, {})},
    "normalised": {},
    "induced": {
        "metric": ("log", {}),
        "xi": (1.0, {}),
        "momentum": (0.5, {}),
        "beta": (0.5, {}),
        "beta_rms": (0.5, {}),
        "epsilon": (0.1, {}),
    },
    "ivon": {
        "beta1": (0.5, {}),
        "beta2": (0.5, {}),
        "h0": (2.0, {}),
        "prior": (0.1, {}),
        "samples": (1, {}),
        "clip_radius": (0.01, {}),
        "precision": ("round", {}),
    },
    "sania": {"metric": ("adagrad_sqr", {}), "beta2": (0.5, {}), "epsilon": (0.5, {}), "root": (True, {})},
    "adahessian": {**MOMENTS, "power": (0.5, {})},
    "oasis": {"beta2": (0.5, {}), "floor": (1.0, {}), "draws": (1, {})},
    "sam": {"rho": (0.5, {}), "adaptive": (False, {}), "eta": (0.1, {}), "base": ("lion", {})},
    "sso": {"inner": (2, {}), "eta": (0.1, {})},
    "egn": {"damping": (3.0, {}), "scale": (20.0, {}), "momentum": (0.2, {})},
    "ai_sarah": {"beta": (0.5, {}), "gamma": (0.1, {}), "restarts": (2, {})},
    "lion": {"beta1": (0.5, {}), "beta2": (0.5, {})},
    "dog": {**AVERAGING, "distance": ("round", {})},
    "l_dog": AVERAGING,
    "a_dog": FROM_DISTANCE,
    "u_dog": FROM_DISTANCE,
    "steepest": {
        "norm": ("rows", {}),
        "biases": ("frobenius", {}),
        "length": ("dual", {}),
        "beta": (0.5, {}),
        "newton_schulz": (0, {}),
    },
    "lanton": {
        "norm": ("rows", {}),
        "biases": ("frobenius", {}),
        "beta1": (0.5, {}),
        "beta2": (0.5, {}),
        "alpha": (0.1, {}),
        "newton_schulz": (0, {}),
    },
    "frugal": {
        "density": (0.5, {}),
        "gap": (1, {}),
        "rest": ("plain", {}),
        "rest_scale": (0.5, {}),
        "beta1": (0.5, {}),
        "beta2": (0.5, {}),
        "epsilon": (0.1, {}),
        "others": ("lion", {}),
        "others_rate": (0.5, {}),
    },
    "muon": {
        "beta": (0.5, {}),
        "nesterov": (False, {}),
        "newton_schulz": (0, {}),
        "first": (False, {}),
        "last": (True, {}),
        "others": ("lion", {}),
        "others_rate": (0.5, {}),
    },
}
PATHS: dict[str, Path] = {
    "strategy": ("strategy",),
    "client": ("client",),
    "optimizer": ("client", "optimizer"),
    "estimator": ("client", "estimator"),
    "defence": ("client", "adversarial"),
    "attack": ("client", "adversarial", "attack"),
}
"""Where plug-ins stand in an experiment."""
PARTS: dict[str, dict[str, Others]] = {
    "strategy": STRATEGIES,
    "client": CLIENTS,
    "optimizer": OPTIMIZERS,
    "estimator": ESTIMATORS,
    "defence": DEFENCES,
    "attack": ATTACKS,
}
STEPPING_APART: Others = {**STEPPING, **{name: LOCAL[name] for name in ARRANGED}}
REFUSED: dict[str, Others] = {
    "scaffold": STEPPING,
    "fzoos": {"batch_size": (4, {})},
    "fedrep": {"curriculum": LOCAL["curriculum"]},
    "ditto": {"curriculum": LOCAL["curriculum"]},
    "pfedme": {
        **{name: other for name, other in STEPPING_APART.items() if name != "weight_decay"},
        **{name: LOCAL[name] for name in SCALED},
    },
    "apfl": STEPPING_APART,
    "perfedavg": STEPPING_APART,
}
"""Options of a row's client that it has from others, and refuses."""
REPORTING: Others = {"cosine": (True, VALUES_ONLY), "name": ("mine", {}), **REPORTED}
"""Options that change what is reported, or how it is called, and must not change the run."""
CROSSING: dict[str, Others] = {
    "one_byte": {"join": ("replay", {}), "history": (1, AWAY)},
    "fedkseed": {"reply": ("dense", {}), "start": ("public", {})},
    "decomfl": {"join": ("replay", {}), "history": (1, AWAY)},
    "evofed": {"join": ("replay", {}), "history": (1, AWAY)},
    "fedes": {
        "downlink": ("losses", {}),
        "join": ("replay", {"downlink": "losses"}),
        "history": (1, {"downlink": "losses", **AWAY}),
    },
    "gradient_coding": {"patience": (10.0, {"rounds": 6})},
    "gradient_coding_bursts": {"patience": (10.0, {})},
}
"""Options of strategies that change what crosses, and must change nothing else."""
SINGLE = {"fedzo": 1e-4, "fzoos": 1e-3}
"""By how much executors may differ in single precision, of the largest parameter, where that is not 1e-5, by client.

Rounded values are divided by a radius, or interpolated by processes whose matrices are far from well conditioned.
"""
ALONE: dict[str, dict[str, Any]] = {
    "fedfix": OBSERVED,
    "fedavg_async": OBSERVED,
    "fedbuff": {"size": 1},
    "sfat": {"khat": 1},
}
"""Options with which a strategy makes do with one client."""
UNCOUNTED = {"measure", "control"}
"""Actions whose evaluations are no part of a method's published count."""
SILENT = {"sgd", "scaffold", "feddyn", "fedrep", "moon", "ifca", "fedala", "local", "fedproto"}
SILENT |= {
    "evofed",
    "ditto",
    "pfedme",
    "apfl",
    "perfedavg",
    "dpsgd",
    "gradient_tracking",
    "push_sum",
    "random_walk",
    "gradient_coding",
}
"""Clients that never ask for a value."""


STEP = {"weighting", "server_lr", "server_optimizer", "server_weight_decay", "report_norms", "deadline"}
"""Options of strategies that clients learn nothing of: how the server steps, and for how long it waits."""


@cache
def server(row: str) -> dict[str, Any]:
    """All of a row but its clients."""
    return {name: table for name, table in ROWS[row].items() if name != "client"}


@cache
def clients(row: str) -> list[dict[str, Any]]:
    """A row's clients, what of the model is theirs, and what its strategy asks of them."""
    strategy, client = (subject(row).table((part,)) for part in ("strategy", "client"))
    return [
        client,
        ROWS[row].get("problem", {}),
        {option: value for option, value in strategy.items() if option not in STEP},
    ]


@cache
def first(about: Callable[[str], Any], row: str) -> bool:
    """Whether no earlier row is the same in what a function says of them."""
    return all(about(other) != about(row) for other in takewhile(lambda other: other != row, ROWS))


def varies(row: str, check: checks.Check) -> bool:
    """Whether a row has what a check is about, and no earlier row has it, too."""
    return (check not in checks.OF_SERVERS or first(server, row)) and (
        check not in checks.OF_CLIENTS or first(clients, row)
    )


EXEMPT: dict[str, tuple[checks.Check, ...]] = {
    "secure": (checks.bytes_are_those_of_the_payloads,),  # they are more: see tests/running/test_secure_rounds.py
    # A code gives the same sum as any other.
    "gradient_coding": (checks.another_seed_gives_other_bytes,),
    "gradient_coding_bursts": (checks.another_seed_gives_other_bytes,),
}
"""What rows need not keep to."""


def held_to(rows: Sequence[str], of: Sequence[checks.Check]) -> list[Any]:
    """Parameters `row, check` of a test: what each row varies before a change, and the whole product once a day.

    Restored runs are those of `test_resume`, which has them of all rows and through a file. A row's checks are of one
    process, for they share runs.
    """
    found = []
    for row in rows:
        for check in of:
            if check in EXEMPT.get(row, ()):
                continue
            often = varies(row, check) and check is not checks.an_interrupted_run_ends_like_an_uninterrupted_one
            marks = [pytest.mark.xdist_group(row), *([] if often else [pytest.mark.slow])]
            found.append(pytest.param(row, check, marks=marks, id=f"{row}-{check.__name__}"))
    return found


def grouped(rows: Sequence[str]) -> list[Any]:
    """Parameters `row` of a test that shares runs with the row's checks."""
    return [pytest.param(row, marks=pytest.mark.xdist_group(row)) for row in rows]


def subject(row: str, values_only: bool = False) -> Subject:
    """A row, to be held to the contract. values_only: on functions."""
    found = Subject(ROWS[row], values_only=values_only)
    kinds = {part: found.table((part,))["kind"] for part in ("strategy", "client")}
    return Subject(
        ROWS[row],
        values_only=values_only,
        tolerance=SINGLE.get(kinds["client"], 1e-5),
        alone=ALONE.get(kinds["strategy"], {}),
    )
