"""The exceptions of `model/`.  They live apart so that catching them does not import torch."""


class ModelError(Exception):
    """The model's files, name or tokenizer cannot be used; the message says what to do next."""


class EngineError(Exception):
    """What came does not fit what the engine holds; nothing was computed."""


class KvError(Exception):
    """The caller asks for KV that was not reserved: its bookkeeping is wrong."""


class NotLogged(Exception):
    """The caller asks for rows that are not in the log: its bookkeeping is wrong."""


COMPUTE_ERRORS = (EngineError, KvError, NotLogged, ModelError, MemoryError, OSError, RuntimeError)
"""What computing can fail with on a healthy program; torch reports a lack of memory as a
RuntimeError.  Anything else is a bug and ends the peer."""
