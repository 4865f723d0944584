"""An outcome as an object for JSON, and in words."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from edgeshard_p2p.faults import figures as fig
from edgeshard_p2p.faults.scenario import FAULTS
from edgeshard_p2p.faults.swarm import Outcome
from edgeshard_p2p.faults.watch import POLL_S


def as_object(outcome: Outcome) -> dict[str, Any]:
    observed, done, times = outcome.observed, outcome.done, outcome.times()
    replayed = done.replayed_tokens if done is not None else 0
    unexpected = outcome.unexpected()
    begun = observed.faults[0].at if observed.faults else 0.0
    return {
        "scenario": outcome.scenario.name,
        "network": outcome.network,
        "prompt_tokens": outcome.prompt_tokens,
        "generated_tokens": outcome.n_tokens,
        "answer": "whole" if done is not None and outcome.tokens.is_whole else "not whole",
        "error": outcome.error,
        "steps": [_step(observed, fault, begun) for fault in observed.faults],
        **asdict(times),
        "stall_ms": fig.stall_ms(observed),
        "tokens": asdict(outcome.tokens),
        "failovers": done.failovers if done is not None else None,
        "replayed_tokens": replayed,
        "recovery_ms": round(done.recovery_ms, 1) if done is not None else None,
        "replay_ms_per_token": replay_of(outcome),
        "left_over": outcome.left_over,
        "poll_ms": POLL_S * 1e3,
        "resolution_ms": fig.resolution_ms(observed),
        "as_expected": not unexpected,
        "unexpected": unexpected,
    }


def replay_of(outcome: Outcome) -> float | None:
    """None where more than one fault makes it nobody's."""
    harms = outcome.harms()
    if outcome.done is None or len(harms) != 1:
        return None
    return fig.replay_ms_per_token(outcome.times(), outcome.done.replayed_tokens)


def _step(observed: fig.Observed, fault: fig.Fault, begun: float) -> dict[str, Any]:
    step: dict[str, Any] = {
        "do": fault.do,
        "who": list(fault.who),
        "at_token": fault.at_token,
        "after_ms": round((fault.at - begun) * 1e3, 1),
    }
    if fault.how:
        step["how"] = fault.how
    return step | (asdict(fig.times_of(observed, fault)) if fault.do in FAULTS else {})


def in_words(told: dict[str, Any]) -> str:
    tokens = told["tokens"]
    lines = [f"{told['scenario']}, on {told['network']}:"]
    for step in told["steps"]:
        who = ", ".join(step["who"]) or "all"
        lines.append(f"  {step['do']} {who} at token {step['at_token']}")
    lines += [
        f"detected after    {_ms(told['detected_ms'])}",
        f"re-planned after  {_ms(told['replanned_ms'])}",
        f"resumed after     {_ms(told['resumed_ms'])}; the longest wait for a token was "
        f"{_ms(told['stall_ms'])}",
        f"tokens            {told['generated_tokens']}: {tokens['lost']} lost, "
        f"{tokens['doubled']} doubled, {tokens['changed']} changed",
    ]
    if told["failovers"] is not None:
        each = told["replay_ms_per_token"]
        lines.append(
            f"failovers         {told['failovers']}: {told['replayed_tokens']} tokens replayed"
            + (f", {each} ms each" if each is not None else "")
            + f"; {_ms(told['recovery_ms'])} in recovery by the source's clock"
        )
    else:
        lines.append(f"the answer ended: {told['error']}")
    resolution = told["resolution_ms"]
    if resolution:
        lines.append(
            f"resolution        {resolution['p50']:.0f} ms between two reports, "
            f"{resolution['max']:.0f} ms at most"
        )
    lines += [f"not as expected: {what}" for what in told["unexpected"]]
    return "\n".join(lines)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"
