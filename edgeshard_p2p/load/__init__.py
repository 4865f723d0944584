"""Many requests put to a running swarm, and what its users would see of it."""
