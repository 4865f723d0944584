"""The one exception of `model/`. It lives alone so that catching it does not import torch."""


class ModelError(Exception):
    """The model's files, name or tokenizer cannot be used; the message says what to do next."""
