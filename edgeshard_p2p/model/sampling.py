"""The next token, a function of (logits, sampling, position) and of nothing else.

Which peer draws it, how often, and in whose company does not matter.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

import torch
from torch import Tensor

from edgeshard_p2p.core.sampling import Sampling


def sample(logits: Tensor, sampling: Sampling, position: int) -> int:
    """The token at ``position`` from the logits [vocabulary] of the row before it."""
    if sampling.temperature == 0.0:
        # Of equal largest logits torch.argmax promises the first.
        return int(torch.argmax(logits))
    scaled = logits.to(torch.float64) / sampling.temperature
    probabilities, order = torch.softmax(scaled, -1).sort(descending=True, stable=True)
    cumulative = probabilities.cumsum(-1)
    # The fewest tokens that together reach top_p; always at least one.
    reaching = int(torch.searchsorted(cumulative, sampling.top_p)) + 1
    nucleus = cumulative[:reaching]
    target = uniform(sampling.seed, position) * float(nucleus[-1])
    drawn = int(torch.searchsorted(nucleus, target, right=True))
    return int(order[min(drawn, len(nucleus) - 1)])


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from a counter: no state to lose or to share."""
    digest = blake2b(struct.pack("<QQ", seed, position), digest_size=8).digest()
    return int(struct.unpack("<Q", digest)[0] >> 11) * 2.0**-53
