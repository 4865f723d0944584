"""A whole swarm from one seed: the real core and the real codec over a simulated network, disk,
clock and model.  Nothing here imports asyncio, zmq or torch."""
