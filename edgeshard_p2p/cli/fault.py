"""``edgeshard fault run``: do a scenario's faults to a swarm, and say what became of the answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from edgeshard_p2p.cli.common import FAILED, USAGE, fail


@click.group()
def fault() -> None:
    """Faults on purpose: how a swarm takes the loss of its peers."""


@fault.command("run")
@click.argument("scenario", type=click.Path(path_type=Path), metavar="SCENARIO.toml")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option(
    "--via",
    metavar="TEMPLATE",
    help="For peers that run on devices of their own: how a command gets there, for instance "
    "'ssh {host} {command}'.",
)
@click.option("--swarm", default="default", show_default=True, help="Theirs, with --via.")
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Their swarm's secret, with --via.",
)
@click.option("--model", metavar="NAME|PATH", help="In place of the scenario's.")
@click.option(
    "--shaper",
    is_flag=True,
    help="Of emulated devices (a topology in the file): each peer holds up what it sends, in place "
    "of namespaces and a switch between them; needs no root, and is so anyway without.",
)
@click.option(
    "--logs", type=click.Path(path_type=Path), metavar="DIR", help="Keep the peers' logs there."
)
def run_scenario(
    scenario: Path,
    as_json: bool,
    via: str | None,
    swarm: str,
    secret_file: Path | None,
    model: str | None,
    shaper: bool,
    logs: Path | None,
) -> None:
    """Start the peers that SCENARIO.toml names, ask one of them, do the faults, and report.

    See scripts/faults for scenarios and what may stand in one.  Exit code 1: not as expected.
    """
    from edgeshard_p2p.faults.devices import FaultError
    from edgeshard_p2p.faults.emulation import devices_of
    from edgeshard_p2p.faults.ending import end_on_term
    from edgeshard_p2p.faults.scenario import TopologyError, read_scenario
    from edgeshard_p2p.faults.telling import as_object, in_words

    end_on_term()
    try:
        read = read_scenario(scenario)
        if read.links is not None:
            devices: Any = devices_of(read, model or read.swarm.model, logs, shaper, _say)
        else:
            devices = _devices(read, via, swarm, secret_file, model, logs)
        outcome = _outcome(read, devices)
    except TopologyError as error:
        fail(str(error), USAGE, as_json)
    except FaultError as error:
        fail(str(error), error.exit_code, as_json)
    except KeyboardInterrupt:
        fail("cancelled", FAILED, as_json)
    told = as_object(outcome)
    told["emulated"] = devices.limits() if read.links is not None else None
    print(json.dumps(told) if as_json else in_words(told), flush=True)
    sys.exit(0 if told["as_expected"] else FAILED)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _outcome(read: Any, devices: Any) -> Any:
    from edgeshard_p2p.faults.swarm import FaultSwarm

    with devices:
        swarm = FaultSwarm(read, devices, _say)
        swarm.open()
        try:
            return swarm.disturb()
        finally:
            swarm.unpin()


def _devices(
    read: Any,
    via: str | None,
    swarm: str,
    secret_file: Path | None,
    model: str | None,
    logs: Path | None,
) -> Any:
    from edgeshard_p2p.faults.devices import FaultError
    from edgeshard_p2p.faults.local import LocalDevices
    from edgeshard_p2p.faults.machine import model_path
    from edgeshard_p2p.faults.via import RemoteDevices, parse_via
    from edgeshard_p2p.net.security import SecretError, open_security, read_secrets

    if read.is_remote:
        if via is None:
            raise FaultError(
                f"{read.name} names devices: say how a command gets there with --via, "
                "for instance --via 'ssh {host} {command}'",
                USAGE,
            )
        try:
            keys = read_secrets(secret_file) if secret_file is not None else ()
        except SecretError as error:
            raise FaultError(str(error), USAGE) from None
        return RemoteDevices(read, parse_via(via), open_security(swarm, keys))
    if via is not None:
        raise FaultError(f'--via: the peers of {read.name} have no address = "HOST:PORT"', USAGE)
    path = model_path(model or read.swarm.model, _say)
    return LocalDevices(read, path, logs)
