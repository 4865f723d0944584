"""Every duration that a decision depends on, in seconds, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    # Membership (SWIM section 4): one probe a period, direct then indirect, then suspicion.
    probe_period_s: float = 0.5
    ack_timeout_s: float = 0.2
    suspicion_s: float = 2.0
    gone_suspicion_s: float = 0.4
    """Where two peers have found that nobody is there: time for a refutation, and no more."""
    forget_s: float = 60.0
    """How long a departure is remembered, so that old news does not bring the member back."""

    contact_first_s: float = 0.5
    contact_max_s: float = 10.0
    """Backing off of the addresses that are tried for ever."""

    gossip_period_s: float = 0.5

    # Links
    probe_small_timeout_s: float = 1.0
    probe_big_timeout_s: float = 10.0
    link_refresh_s: float = 60.0
    link_doubt_s: float = 10.0
    """A link that looks worse than before is looked at again sooner."""

    # Plans
    seed_delay_s: float = 1.5
    """A peer that has met nobody by then seeds the swarm's settings from its own flags."""
    settle_s: float = 0.5
    """Quiet time before a peer calls itself eligible; grows with refutations."""
    gain_quiet_s: float = 1.0
    """A gain re-plans only after the snapshot was quiet for this long; a loss at once."""
    hopeless_s: float = 5.0
    """No plan is possible for so long: requests that wait for one end."""
    edge_retry_s: float = 0.25
    edge_deadline_s: float = 20.0
    load_deadline_s: float = 60.0
    load_bytes_per_s: float = 5e6
    """Loading may take the deadline and the bytes at this rate, that of a slow memory card."""
    drain_deadline_s: float = 10.0
    failure_expiry_s: float = 60.0

    # Slow devices
    slow_stretch_s: float = 2.0
    """Two stretches so long, one after the other, show that a device is slow."""
    slow_heed_s: float = 60.0
    """An owner changes its figures for that at most so often."""
    slow_expiry_s: float = 60.0
    """It goes by its measured figures again after so long, twice as long the next time ..."""

    # Frames and requests
    resend_s: float = 0.5
    edge_lost_s: float = 5.0
    """No acknowledgement for this long: the edge is lost."""
    ask_repeat_s: float = 1.0
    report_wait_s: float = 0.5
    """With its slot granted, a request waits so long for what the stages have of it."""
    kept_s: float = 60.0
    """How long a peer keeps what it has of a request whose plan is gone."""
    retry_s: float = 0.5
    progress_s: float = 30.0
    """An attempt that yields nothing for this long is given up."""
    request_wait_s: float = 60.0
    """How long a request waits for a plan or a slot before it ends with an error ..."""
    begun_wait_s: float = 600.0
    """... and one that has begun: of so many as had a slot on the plan that was lost, some have to
    end first."""
