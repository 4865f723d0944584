"""Lines of a run: read back, added up, and turned into a report that says what is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from edgeshard_p2p.cli.plot import plot_comparison
from edgeshard_p2p.reproduction import lines as written
from edgeshard_p2p.reproduction.cells import BUBBLES, LATENCY, THROUGHPUT, Cell, Place, in_words
from edgeshard_p2p.reproduction.figures import accuracy, gain, rivals, series
from edgeshard_p2p.reproduction.lines import Emulated, Ended, LinesError, Run, Swarm, Switch
from edgeshard_p2p.reproduction.report import report
from tests.core.parts import some

SOLO = "agx-1:0-32"
ROUND = "agx-1:0-1,agx-2:1-5,rtx3090:5-32"

RUN = Run(
    command="scripts/reproduce --quick",
    version="1.0",
    machine={"processor": "P", "cores": "2"},
    model="small",
    row_bytes=2304,
    prompt_tokens=32,
    generate=24,
    repeats=3,
    requests=8,
    seed=0,
    context=64,
    scale=2.5,
    devices=(Emulated("agx-1", "AGX Orin", 0.1672, 700, 140.34),),
    links_checked=36,
    links_wrong=("agx-1 -> nx: 100 bytes took 9.00 ms, should take 5.00",),
)


BAR = "\\|"


def cell(
    algorithm: str,
    *measured: float,
    predicted: float | None = None,
    objective: str = LATENCY,
    mbps: float = 1.0,
    plan: str = "",
    why: str = "",
    like: str = "",
) -> Cell:
    place = Place("agx-1", mbps, objective, algorithm)
    plan = plan or {"exact": ROUND}.get(algorithm, SOLO)
    return Cell(place, plan, predicted, measured, why, like)


CELLS = (
    cell("edge-solo", 350.0, 352.0, 354.0, predicted=340.0),
    cell("cloud-edge-even", 600.0, 620.0, 640.0, predicted=520.0),
    cell("cloud-edge-opt", 350.0, 352.0, 354.0, predicted=340.0, like="edge-solo"),
    cell("paper", predicted=160.0, why="a token would come back"),
    cell("exact", 150.0, 160.0, 170.0, predicted=150.0),
    cell("edge-solo", 10.0, 12.0, predicted=11.0, objective=THROUGHPUT),
    cell("exact", 21.0, 23.0, predicted=30.0, objective=THROUGHPUT),
    Cell(Place("agx-1", 1.0, THROUGHPUT, "exact", BUBBLES), ROUND, 15.0, (16.0,)),
    cell("exact", 120.0, predicted=118.0, mbps=50.0),
)
LINES = written.Lines(
    RUN,
    (Swarm("agx-1", {"agx-1": 351.0, "rtx3090": 65.0}),),
    (Switch("agx-1", 600.0, 30.0, 1000, 80.0),),
    (Ended("source nx", "there was no more time"),),
    CELLS,
    ("1.0",),
)


def test_predictions_are_judged_by_plans_that_were_measured() -> None:
    found = some(accuracy(CELLS, LATENCY))
    assert found.n == 4  # Not the one that nobody serves, nor the same plan twice.
    assert found.median == pytest.approx((1 - 340 / 352 + 1 - 150 / 160) / 2)
    assert found.worst.place.algorithm == "cloud-edge-even"
    assert accuracy((), LATENCY) is None


def test_gain_is_over_the_best_baseline() -> None:
    assert some(gain(CELLS, "agx-1", 1.0, LATENCY)).ratio == pytest.approx(352 / 160)
    assert some(gain(CELLS, "agx-1", 1.0, THROUGHPUT)).ratio == pytest.approx(22 / 11)
    assert gain(CELLS, "agx-1", 50.0, LATENCY) is None
    assert gain(CELLS, "nx", 1.0, LATENCY) is None


def test_figure_that_does_not_count_is_no_baseline() -> None:
    ended = cell("edge-solo", 100.0, why="the swarm changed its plan meanwhile")
    assert some(gain([ended, *CELLS[1:]], "agx-1", 1.0, LATENCY)).ratio == pytest.approx(352 / 160)


def test_who_is_better_than_exact_is_named_with_the_noise() -> None:
    assert rivals(CELLS) == (3, [])
    (near, far) = (cell("even", 150.0, 152.0), cell("cloud-edge-even", 100.0, 100.0))
    n, better = rivals([CELLS[4], near, far])
    assert n == 2
    assert [rival.is_within_noise for rival in better] == [True, False]
    same = cell("even", 150.0, plan=ROUND)
    assert rivals([CELLS[4], same]) == (1, [])


def test_series_have_gaps_where_nothing_was_measured() -> None:
    found = series(CELLS, "agx-1", LATENCY)
    assert found["exact"] == [(1.0, 150.0, 160.0), (50.0, 118.0, 120.0)]
    assert found["paper"] == [(1.0, 160.0, None)]
    assert "even" not in found


def test_lines_come_back_as_they_were_written() -> None:
    lines = [RUN, *LINES.swarms, *LINES.switches, *LINES.ended, *CELLS]
    assert written.read(map(written.write, lines)) == LINES


def test_later_line_of_a_place_counts() -> None:
    again = cell("exact", 140.0, predicted=150.0)
    assert again in written.read(map(written.write, [RUN, *CELLS, again])).cells
    assert len(written.read(map(written.write, [RUN, *CELLS, again])).cells) == len(CELLS)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["{"], "line 1 is no line of a run"),
        ([written.write(RUN), '{"kind": "cell"}'], "line 2 is no line of a run"),
        ([], "no line says how the run was begun"),
    ],
)
def test_lines_that_are_no_run_s_are_refused(lines: list[str], why: str) -> None:
    with pytest.raises(LinesError, match=why):
        written.read(lines)


def test_what_was_not_come_to_is_forgotten_once_the_run_goes_on() -> None:
    ended = Ended("source nx", "there was no more time")
    for lines, expected in (((RUN, *CELLS, ended), (ended,)), ((RUN, ended, RUN, *CELLS), ())):
        assert written.read(map(written.write, lines)).ended == expected


def test_command_does_not_say_where_files_went() -> None:
    given = ["--out", "/home/me/there", "--mbps", "1", "--logs=/home/me/logs", "--quick"]
    assert written.command_of(given) == "scripts/reproduce --mbps 1 --quick"


def test_cells_of_several_versions_are_said_to_be() -> None:
    later = replace(RUN, version="1.1")
    found = written.read(map(written.write, [RUN, *CELLS, later, RUN]))
    assert "| program | 1.0, then 1.1 |" in report(found)


def test_report_has_every_figure_beside_its_prediction() -> None:
    text = report(LINES, ["reproduce-agx-1.svg"])
    for expected in (
        "| exact | 150 \\| 160 ±6.2 % | 118 \\| 120 |",
        "| paper | 160 \\| - | not in this run |",
        "| 1 | paper | 0-31 agx-1 |  | a token would come back |",
        f"| 1 | exact | {in_words(ROUND).replace('|', BAR)} |  |  |",
        "measured once, as edge-solo",
        "met, at least 1.85 is wanted: source agx-1, 1 Mbps, ms/token: 2.20 times",
        "**not met**, at least 2.2 is wanted: source agx-1, 1 Mbps, tokens/s: 2.00 times",
        "met: `exact` takes no more ms/token than any other algorithm",
        "| 1 | exact | 15 \\| 16 | 30 \\| 22 ±4.5 % | 1.38 |  |",
        "1 of them took more than a tenth",
        "5.0 % of a core over 10 minutes",
        "Not measured to its end: source nx: there was no more time.",
        "![reproduce-agx-1.svg](reproduce-agx-1.svg)",
        "`scripts/reproduce --quick`",
        "| scale s | 2.500 |",
    ):
        assert expected in text


def test_report_of_a_run_without_figures_claims_nothing() -> None:
    bare = written.Lines(
        RUN, (), (), (), (cell("exact", why="it failed", predicted=1.0),), ("1.0",)
    )
    text = report(bare)
    assert "**not met**: `exact` takes no more" in text
    assert "**not met**: predicted ms/token: nothing was measured" in text
    assert (
        "**not met**, at least 1.85 is wanted: source agx-1, 1 Mbps, ms/token: no figures" in text
    )
    assert "| exact | 1 \\| - |" in text


def test_what_is_published_can_be_read_again() -> None:
    """And says the same as the report beside it."""
    published = Path(__file__).parents[2] / "docs" / "results"
    found = written.read((published / "reproduce.jsonl").read_text().splitlines())
    assert found.cells
    figures = report(found).partition("## What is emulated")[0]
    assert (published / "reproduce.md").read_text().startswith(figures)


def test_picture_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    panels = {"ms/token": series(CELLS, "agx-1", LATENCY)}
    files = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for file in files:
        plot_comparison(panels, file, "source agx-1")
    assert files[0].read_bytes() == files[1].read_bytes()
    assert b"<svg" in files[0].read_bytes()
