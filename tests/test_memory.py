"""A long run does not grow."""

from pathlib import Path

import forks
import pytest

ROOT = Path(__file__).parent.parent
MEASURED = """
import sys
from pathlib import Path

import fedsim

PAGE = 4096
rounds, out = int(sys.argv[1]), sys.argv[2]
sizes = []


def look(seen):
    sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE)


experiment = fedsim.load("experiments/digits_fedavg.toml", overrides=[f"rounds={rounds}", "client.epochs=1"])
fedsim.run(experiment, out=out, callbacks=[look])
print(max(sizes[100:]) - sizes[99])
"""


def grown(rounds: int, out: Path) -> int:
    """Bytes by which the process grows after its first 100 rounds."""
    done = forks.python("-c", MEASURED, rounds, out, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of a process is read from /proc")
@pytest.mark.parametrize("rounds", [400, pytest.param(2_000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_a_run_grows_by_less_than_20_mib_after_its_first_100_rounds(rounds, tmp_path):
    assert grown(rounds, tmp_path / "run") < 20 * 2**20
