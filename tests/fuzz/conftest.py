from __future__ import annotations

import pytest

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
        for line in tally.summary():
            terminalreporter.write_line(line)
