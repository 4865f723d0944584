"""Large language models on the devices people already have, together, with nobody in charge.

Importing this package pulls in neither torch nor zmq.
"""

__version__ = "0.1.0"
