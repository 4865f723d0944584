"""What ``scripts/testbed`` runs: emulated devices of a topology file, and a command among them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from edgeshard_p2p.cli.emulating import Emulation, devices_of, emulation_options
from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.faults.emulation import check_number, must_shape
from edgeshard_p2p.faults.ending import end_on_term
from edgeshard_p2p.faults.local import SHAPER, SWITCH
from edgeshard_p2p.faults.lone_messages import SIZES, Trial, check_switched_links
from edgeshard_p2p.faults.scenario import links_of
from edgeshard_p2p.faults.shaped_messages import check_shaped_links
from edgeshard_p2p.topology import Topology, TopologyError, read_topology

FAILED, USAGE = 1, 2


def say(text: str) -> None:
    click.echo(text, err=True)


def fail(text: str, exit_code: int) -> NoReturn:
    say(f"testbed: {text}")
    sys.exit(exit_code)


@click.command("testbed", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--check",
    is_flag=True,
    help="Measure every link by lone messages of "
    f"{', '.join(map(str, SIZES))} bytes, both ways, before anything else; where one is "
    "more than a tenth and 0.5 ms off, end with exit code 1.",
)
@emulation_options
@click.option("--json", "as_json", is_flag=True, help="What --check found, as one object.")
@click.argument("topology", type=click.Path(path_type=Path))
@click.argument("command", nargs=-1)
def main(
    check: bool,
    as_json: bool,
    topology: Path,
    command: tuple[str, ...],
    **wanted: Any,
) -> None:  # fmt: skip
    """Start a peer for each device of TOPOLOGY on this machine, wait until the swarm serves, and
    run COMMAND where the first source is, with that peer as the one that edgeshard's commands ask.
    Everything is taken down afterwards.  Exit code: COMMAND's.

    Each device has a network namespace, the share of the machine's time that its class says
    (`cores`), its memory, and to each other device a link of the file's rate and delay.  Without
    root, or with --shaper, the peers are on loopback and hold up what they send themselves.  What
    belongs to a message and not to its bytes (`per_message_ms`) is not emulated.
    """
    end_on_term()
    if not check and not command:
        fail("give a command after the topology, or --check", USAGE)
    try:
        if check:
            _check(read_topology(topology), wanted["shaper"], as_json)
        if command:
            sys.exit(_run(topology, Emulation(**wanted), command))
    except TopologyError as error:
        fail(str(error), USAGE)
    except FaultError as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        fail("cancelled", FAILED)


def _check(topology: Topology, is_shaped: bool, as_json: bool) -> None:
    check_number(len(topology.members))
    links, said = links_of(topology), None
    if is_shaped := must_shape(is_shaped, say):
        trials = check_shaped_links(links, say)
    else:
        names = [member.name for member in topology.members]
        trials, said = check_switched_links(names, links, say)
    if not trials:
        fail("no two devices of this file are linked both ways", USAGE)
    wrong = [trial for trial in trials if not trial.is_right]
    how = SHAPER if is_shaped else SWITCH
    if as_json:
        told = {
            "links": how,
            "messages": len(trials),
            "wrong": [str(trial) for trial in wrong],
            "worst": {str(size): str(_worst(trials, size)) for size in SIZES},
            "switch": said,
        }
        print(json.dumps(told), flush=True)
    else:
        for size in SIZES:
            click.echo(f"furthest off of {size} bytes: {_worst(trials, size)}")
        right = len(trials) - len(wrong)
        click.echo(f"{right} of {len(trials)} messages through {how} took what they should")
    if wrong:
        busy = "; is the machine busy? Figures of such links do not count"
        fail(f"{len(wrong)} of {len(trials)} messages were off{busy}", FAILED)


def _worst(trials: Sequence[Trial], size: int) -> Trial:
    return max((t for t in trials if t.n_bytes == size), key=lambda t: t.took_ms / t.ideal_ms)


def _run(topology: Path, wanted: Emulation, command: Sequence[str]) -> int:
    with devices_of(topology, wanted, say) as found:
        devices, source = found.devices, found.scenario.source
        return subprocess.run(
            [*devices.command(source), *command],
            env=os.environ | devices.environment(source),
            check=False,
        ).returncode


if __name__ == "__main__":
    main(prog_name="scripts/testbed")
