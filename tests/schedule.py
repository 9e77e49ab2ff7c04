"""Which process runs which tests: groups as pytest-xdist deals them out, without going through all that is done.

Its scheduler counts, after each test, those of all units that a process has ever had, and looks for each test among
all of them: with many thousands of tests that is a tenth of all work, in the process that the others wait for.
"""

from __future__ import annotations

from functools import cached_property

from xdist.scheduler import LoadGroupScheduling
from xdist.workermanage import WorkerController


class Forgetting(LoadGroupScheduling):
    """Forgets tests as they are done, which is all that it knows of them."""

    @cached_property
    def places(self) -> dict[str, int]:
        """Where each test stands among all."""
        assert self.collection is not None
        return {test: place for place, test in enumerate(self.collection)}

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        assert self.collection is not None
        test = self.collection[item_index]
        units, unit = self.assigned_work[node], self._split_scope(test)
        del units[unit][test]
        if not units[unit]:
            del units[unit]
        self._reschedule(node)

    def _assign_work_unit(self, node: WorkerController) -> None:
        unit, tests = self.workqueue.popitem(last=False)
        self.assigned_work[node][unit] = tests
        node.send_runtest_some([self.places[test] for test in tests])
