"""What ``scripts/testbed`` runs: emulated devices of a topology file, and a command among them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.faults.emulation import check_fits, check_number, links_of, scenario_of
from edgeshard_p2p.faults.ending import end_on_term
from edgeshard_p2p.faults.local import LocalDevices
from edgeshard_p2p.faults.lone_messages import SIZES, Trial, check_links
from edgeshard_p2p.faults.namespaces import NamespaceError, Switched
from edgeshard_p2p.faults.swarm import FaultSwarm
from edgeshard_p2p.model.errors import ModelError
from edgeshard_p2p.model.library import DEMO_NAME, fetch_demo_model, resolve
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
@click.option("--model", default=DEMO_NAME, show_default=True, metavar="NAME|PATH")
@click.option(
    "--flag",
    "flags",
    multiple=True,
    metavar="FLAG=VALUE",
    help="For every peer, as batch=8 for --batch 8.  May be repeated.",
)
@click.option("--logs", type=click.Path(path_type=Path), metavar="DIR", help="Keep peers' logs.")
@click.option("--json", "as_json", is_flag=True, help="What --check found, as one object.")
@click.argument("topology", type=click.Path(path_type=Path))
@click.argument("command", nargs=-1)
def main(
    check: bool,
    model: str,
    flags: tuple[str, ...],
    logs: Path | None,
    as_json: bool,
    topology: Path,
    command: tuple[str, ...],
) -> None:  # fmt: skip
    """Start a peer for each device of TOPOLOGY on this machine, wait until the swarm serves, and
    run COMMAND where the first source is, with that peer as the one that edgeshard's commands ask.
    Everything is taken down afterwards.  Exit code: COMMAND's.

    Each device has a network namespace, the share of the machine's time that its class says
    (`cores`), its memory, and to each other device a link of the file's rate and delay.  What
    belongs to a message and not to its bytes (`per_message_ms`) is not emulated.
    """
    end_on_term()
    if not check and not command:
        fail("give a command after the topology, or --check", USAGE)
    try:
        wanted = read_topology(topology)
        if check:
            _check(wanted, as_json)
        if command:
            sys.exit(_run(wanted, model, _as_flags(flags), logs, command))
    except TopologyError as error:
        fail(str(error), USAGE)
    except FaultError as error:
        fail(str(error), error.exit_code)
    except (NamespaceError, ModelError) as error:
        fail(str(error), FAILED)
    except KeyboardInterrupt:
        fail("cancelled", FAILED)


def _as_flags(pairs: Sequence[str]) -> list[str]:
    flags = []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise FaultError(f"--flag {pair!r} is not FLAG=VALUE", USAGE)
        flags += [f"--{key}", value]
    return flags


def _check(topology: Topology, as_json: bool) -> None:
    check_number(len(topology.members))
    links = links_of(topology)
    namespaces = Switched([member.name for member in topology.members], links)
    try:
        trials = check_links(namespaces, links, say)
    except OSError as error:
        fail(f"a link does not work: {error}", FAILED)
    finally:
        namespaces.close()
    if not trials:
        fail("no two devices of this file are linked both ways", USAGE)
    wrong = [trial for trial in trials if not trial.is_right]
    if as_json:
        told = {
            "messages": len(trials),
            "wrong": [str(trial) for trial in wrong],
            "worst": {str(size): str(_worst(trials, size)) for size in SIZES},
            "switch": namespaces.said,
        }
        print(json.dumps(told), flush=True)
    else:
        for size in SIZES:
            click.echo(f"furthest off of {size} bytes: {_worst(trials, size)}")
        click.echo(f"{len(trials) - len(wrong)} of {len(trials)} messages took what they should")
    if wrong:
        busy = "; is the machine busy? Figures of such links do not count"
        fail(f"{len(wrong)} of {len(trials)} messages were off{busy}", FAILED)


def _worst(trials: Sequence[Trial], size: int) -> Trial:
    return max((t for t in trials if t.n_bytes == size), key=lambda t: t.took_ms / t.ideal_ms)


def _run(
    topology: Topology, model: str, flags: list[str], logs: Path | None, command: Sequence[str]
) -> int:
    scenario = scenario_of(topology, flags)
    path = fetch_demo_model(say).path if model == DEMO_NAME else resolve(model).path
    check_fits(scenario, str(path))
    say(
        f"starting {len(scenario.peers)} devices; one of each kind measures itself first, which "
        "takes the longer the smaller its share of this machine: up to a minute each"
    )
    with LocalDevices(scenario, str(path), logs, links_of(topology)) as devices:
        swarm = FaultSwarm(scenario, devices, say)
        swarm.wait_until_serving()
        environment = os.environ | devices.environment(scenario.source)
        return subprocess.run(
            [*devices.command(scenario.source), *command], env=environment, check=False
        ).returncode


if __name__ == "__main__":
    main(prog_name="scripts/testbed")
