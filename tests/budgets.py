"""How many seconds the tests of a file may take before a change, on two quiet cores.

pytest ends with what files have taken beside it. Nothing fails where it is more, for machines are busy at times; who
has a file take more makes its tests cheaper, has those that repeat others be `slow`, or raises its budget here.
"""

from __future__ import annotations

OTHERS = 6
"""Of a file that is not in `SECONDS`."""
SECONDS = {
    "fedsim/testing/suite.py": 20,
    "tests/attacks/test_oracle.py": 8,
    "tests/browser/test_live.py": 8,
    "tests/browser/test_report.py": 20,
    "tests/cli/test_cli.py": 20,
    "tests/cli/test_describe.py": 10,
    "tests/cli/test_new.py": 25,
    "tests/cli/test_schema.py": 12,
    "tests/clients/test_fedzo.py": 10,
    "tests/core/test_plugins.py": 15,
    "tests/devices/test_faults.py": 10,
    "tests/engine/test_process.py": 20,
    "tests/engine/test_virtual.py": 15,
    "tests/engine/test_waits.py": 15,
    "tests/experiments/benchmarks/test_rounds.py": 15,
    "tests/experiments/test_curriculum_experiment.py": 10,
    "tests/experiments/test_experiments.py": 20,
    "tests/experiments/test_fal_experiment.py": 10,
    "tests/flower/serving/test_app_checkpoints.py": 10,
    "tests/flower/serving/test_asynchronous_apps.py": 8,
    "tests/flower/serving/test_faulty_nodes.py": 8,
    "tests/flower/serving/test_register.py": 10,
    "tests/flower/test_as_strategy_flower.py": 15,
    "tests/flower/test_every_strategy.py": 10,
    "tests/flower/test_forged.py": 10,
    "tests/flower/test_grid.py": 15,
    "tests/flower/test_ray.py": 45,
    "tests/flower/test_searching.py": 8,
    "tests/flower/test_simulation.py": 25,
    "tests/flower/test_wall_clock.py": 8,
    "tests/flower/test_worlds.py": 12,
    "tests/nets/test_forward.py": 15,
    "tests/nets/test_fused.py": 25,
    "tests/nets/test_kernels.py": 12,
    "tests/nets/test_stages.py": 10,
    "tests/parallel/test_workers.py": 25,
    "tests/plots/test_plots.py": 15,
    "tests/problems/test_evaluators.py": 25,
    "tests/running/test_resume.py": 40,
    "tests/running/test_seeds.py": 10,
    "tests/running/test_sweep.py": 25,
    "tests/strategies/test_asynchronous.py": 8,
    "tests/test_contract.py": 80,
    "tests/test_distribution.py": 15,
    "tests/test_fuzz.py": 10,
    "tests/test_pages.py": 60,
    "tests/test_processes.py": 25,
    "tests/testing/test_broken.py": 10,
    "tests/testing/test_broken_parts.py": 15,
    "tests/testing/test_suite.py": 20,
    "tests/tuning/test_tuned_search.py": 10,
    "tests/zeroth_order/surrogates/test_gaussian_process.py": 15,
    "tests/zeroth_order/test_directions.py": 10,
    "tests/zeroth_order/test_forward_gradient.py": 15,
    "tests/zeroth_order/test_mezo_memory.py": 15,
}


def lines(taken: dict[str, float], longest: int) -> list[str]:
    """What files took in seconds, beside what they may: the longest ones, and all that took more."""
    told = []
    for place, (file, seconds) in enumerate(sorted(taken.items(), key=lambda entry: -entry[1])):
        budget = SECONDS.get(file, OTHERS)
        if place < longest or seconds > budget:
            told.append(f"{seconds:7.1f} of {budget:3d} {file}{'  more than its budget' if seconds > budget else ''}")
    return told
