"""Faults done on purpose to a swarm that answers, and what became of the answer."""
