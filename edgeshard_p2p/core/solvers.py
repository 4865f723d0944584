"""Which search a pool is given to, and what it can promise of what it finds."""

from __future__ import annotations

from edgeshard_p2p.core.kinds import Kinds, States, n_states
from edgeshard_p2p.core.latency_dp import Placement, Problem, cheapest, is_feasible
from edgeshard_p2p.core.local_search import PIECES_MAX, built, improved
from edgeshard_p2p.core.relaxation import STEPS_MAX, lower_bound

CANDIDATES_MAX = 12
"""Different devices that shared stages are placed on exactly; the table doubles with each."""
STATES_MAX = CANDIDATES_MAX << CANDIDATES_MAX
"""Rows of that table.  Of devices that are alike more can be placed in as many."""


class ExactSearch:
    """Finds a chain wherever there is one, and the cheapest."""

    is_exact = True

    def __init__(self, kinds: Kinds) -> None:
        self.kinds = kinds
        """How its problems count the devices."""
        self._states = States(kinds)

    def is_feasible(self, problem: Problem) -> bool:
        return is_feasible(problem, self._states)

    def first(self, problem: Problem) -> Placement | None:
        return cheapest(problem, self._states)

    def refined(self, problem: Problem, found: Placement) -> Placement:
        return found

    def least_cost(self, problem: Problem, known: int) -> int:
        """Proved, of the cost of what was found: no chain costs less."""
        return known


class LocalSearch:
    """Finds chains; not always one where there is one, and not always the cheapest."""

    is_exact = False

    def __init__(self, n_devices: int) -> None:
        self.kinds = [[device] for device in range(n_devices)]

    def is_feasible(self, problem: Problem) -> bool:
        return built(problem, 1) is not None

    def first(self, problem: Problem) -> Placement | None:
        """In milliseconds; ``refined`` takes a second, and pays."""
        return built(problem)

    def refined(self, problem: Problem, found: Placement, n_pieces: int = PIECES_MAX) -> Placement:
        return improved(problem, found, n_pieces)

    def least_cost(self, problem: Problem, known: int, n_steps: int = STEPS_MAX) -> int:
        """Proved up to ``known``; the nearer to the least, the more steps it may take."""
        return lower_bound(problem, known, n_steps)


Solver = ExactSearch | LocalSearch


def solver_for(kinds: Kinds) -> Solver:
    """The exact one as long as its table can be afforded."""
    if n_states(kinds) <= STATES_MAX:
        return ExactSearch(kinds)
    return LocalSearch(sum(map(len, kinds)))
