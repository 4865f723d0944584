"""``edgeshard selftest``: whether the running swarm gives the same tokens however it is cut."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from edgeshard_p2p.cli.common import FAILED, fail, one_line, peer_options


@click.command()
@click.option("--force", is_flag=True, help="Though requests run: they are moved about.")
@peer_options
def selftest(
    force: bool, peer_address: str, swarm: str, secret_file: Path | None, as_json: bool
) -> None:
    """Try the running swarm, in about two minutes at most.

    Moves each boundary of its plan by one block either way and leaves one stage out, where memory
    allows, and asks each plan the same; then lets one stage stand still in the middle of an answer.
    All have to give the same tokens.  Afterwards the swarm is on the plan that it served before,
    unless its figures have changed, which is said.  Exit code 1: other tokens, no plan of its own
    afterwards, or nothing that could be tried.
    """
    from edgeshard_p2p.config import parse_address
    from edgeshard_p2p.faults.devices import FaultError
    from edgeshard_p2p.faults.ending import end_on_term
    from edgeshard_p2p.faults.selftest import SelfTest
    from edgeshard_p2p.faults.verdict import Tokens
    from edgeshard_p2p.net.security import open_security, read_secrets

    end_on_term()
    try:
        with one_line(peer_address, as_json):
            secrets = read_secrets(secret_file) if secret_file is not None else ()
            test = SelfTest(
                parse_address(peer_address),
                open_security(swarm, secrets),
                lambda text: click.echo(text, err=as_json),
            )
            outcome = test.run(force)
    except FaultError as error:
        fail(str(error), error.exit_code, as_json)
    except KeyboardInterrupt:
        fail("cancelled", FAILED, as_json)
    verdict = outcome.verdict
    if as_json:
        told = asdict(outcome) | {"verdict": verdict}
        print(json.dumps(told, default=lambda tokens: tokens.value))
    else:
        n_tried = sum(trial.tokens is not Tokens.NOT_TRIED for trial in outcome.trials)
        lost = outcome.rehearsal is not None and outcome.rehearsal.tokens is not Tokens.NOT_TRIED
        failover = "and a failover" if lost else "and no failover"
        click.echo(f"{verdict}: {n_tried} of {len(outcome.trials)} plans {failover} tried")
    sys.exit(0 if verdict == "passed" else FAILED)
