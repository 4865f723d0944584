"""``edgeshard run``: a prompt in, the answer streamed out."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from edgeshard_p2p.cli.common import FAILED, USAGE, Finite, fail, peer_options, talking

ANSWER_TIMEOUT_S = 120.0
SEED_BITS = 62


@click.command()
@click.argument("prompt")
@peer_options
@click.option("--max-tokens", type=click.IntRange(1, 2**24), default=256, show_default=True)
@click.option(
    "--temperature",
    type=Finite(0, 100),
    default=0.0,
    show_default=True,
    help="0 is greedy.",
)
@click.option("--top-p", type=Finite(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="[default: drawn]")
@click.option("--raw", is_flag=True, help="No chat template: continue the prompt as it is.")
def run(
    prompt: str,
    peer_address: str,
    swarm: str,
    secret_file: Path | None,
    as_json: bool,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    raw: bool,
) -> None:  # fmt: skip
    """Ask the swarm.  The peer that is asked owns the request; the prompt stays there."""
    from edgeshard_p2p.core.sampling import Sampling
    from edgeshard_p2p.wire.client import Cancel, Run

    if not prompt.strip():
        fail("the prompt is empty", USAGE, as_json)
    if not _is_unicode(prompt):
        fail("the prompt is not UTF-8 text", USAGE, as_json)
    sampling = Sampling(temperature, top_p, secrets.randbits(SEED_BITS) if seed is None else seed)
    with talking(peer_address, swarm, secret_file, as_json) as client:
        client.send(Run(prompt, raw, max_tokens, sampling))
        try:
            _stream(client.answers(ANSWER_TIMEOUT_S), as_json)
        except KeyboardInterrupt:
            client.send(Cancel())
            fail("cancelled", FAILED, as_json)


def _is_unicode(text: str) -> bool:
    """False where the command line held other bytes, which Python keeps as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _stream(answers: Iterator[Any], as_json: bool) -> None:
    from edgeshard_p2p.wire import client as wire

    text: list[str] = []
    is_mid_line = False
    token_ids: list[int] = []
    for answer in answers:
        if isinstance(answer, wire.Text):
            text.append(answer.text)
            token_ids += answer.token_ids
            if answer.text and not as_json:
                print(answer.text, end="", flush=True)
                is_mid_line = not answer.text.endswith("\n")
        elif isinstance(answer, wire.Notice):
            if is_mid_line:
                click.echo(err=True)
            click.echo(f"[{answer.text}]", err=True)
        elif isinstance(answer, wire.Failed):
            if is_mid_line:
                print()
            retry = f"; try again in {answer.retry_ms / 1e3:.0f} s" if answer.retry_ms else ""
            fail(answer.error + retry, USAGE if answer.is_usage else FAILED, as_json)
        elif isinstance(answer, wire.Done):
            _finish("".join(text), token_ids, answer, as_json)
            return


def _finish(text: str, token_ids: list[int], done: Any, as_json: bool) -> None:
    tokens_per_s = 1e3 / done.ms_per_token if done.ms_per_token else 0.0
    if as_json:
        result = {
            "text": text,
            "token_ids": token_ids,
            "finish_reason": done.finish_reason,
            "prompt_tokens": done.prompt_tokens,
            "cached_tokens": done.cached_tokens,
            "ttft_ms": round(done.ttft_ms, 3),
            "ms_per_token": round(done.ms_per_token, 3),
            "tokens_per_s": round(tokens_per_s, 3),
            "plan_id": done.plan_id,
            "failovers": done.failovers,
            "replayed_tokens": done.replayed_tokens,
            "recovery_ms": round(done.recovery_ms, 3),
        }
        print(json.dumps(result), flush=True)
        return
    sys.stdout.write("\n")
    sys.stdout.flush()
    lost = ""
    if done.cached_tokens:
        lost = f", {done.cached_tokens} of {done.prompt_tokens} prompt tokens cached"
    if done.failovers:
        times = "1 failover" if done.failovers == 1 else f"{done.failovers} failovers"
        lost += f", {times} ({done.replayed_tokens} tokens replayed, {done.recovery_ms:.0f} ms)"
    click.echo(
        f"[{done.generated_tokens} tokens ({done.finish_reason}), first after "
        f"{done.ttft_ms:.0f} ms, then {done.ms_per_token:.1f} ms/token = "
        f"{tokens_per_s:.1f} tokens/s, plan {(done.plan_id or 'none')[:6]}{lost}]",
        err=True,
    )
