from __future__ import annotations

import pytest

from tests.fuzz import corpus
from tests.fuzz.tally import Tally

TALLY = pytest.StashKey[Tally]()


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    tally = Tally(grows=bool(request.config.getoption("--campaign")))
    request.config.stash[TALLY] = tally
    return tally


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Of a run with workers each has its own, which are not added up."""
    tally = config.stash.get(TALLY, None)
    if tally is not None:
        terminalreporter.section("fuzz")
        kept = corpus.grow(tally.smallest)
        names = ", ".join(path.stem for path in kept)
        grown = [f"new in the corpus, to be looked at and committed: {names}"] if kept else []
        for line in tally.summary() + grown:
            terminalreporter.write_line(line)
