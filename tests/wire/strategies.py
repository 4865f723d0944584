"""Values of a message type, drawn from the type and its bounds alone: a new message or field is
tested without a word here."""

from __future__ import annotations

import builtins
import sys
from functools import cache
from typing import Any, TypeVar

import msgspec
from hypothesis import strategies as st
from msgspec import inspect as mi

T = TypeVar("T")

ITEMS_MAX = 3
"""Of a sequence; its bound is tested apart."""
TEXT_MAX = 20


@cache  # Making a strategy takes longer than drawing from it.
def values_of(kind: type[T] | Any) -> st.SearchStrategy[Any]:
    """All values that may travel as ``kind``."""
    return _strategy(mi.type_info(kind))


def junk() -> st.SearchStrategy[bytes]:
    """Well-formed msgpack of no particular shape."""
    leaves: st.SearchStrategy[Any] = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False),
        st.text(max_size=TEXT_MAX),
        st.binary(max_size=TEXT_MAX),
    )
    trees = st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
        ),
        max_leaves=20,
    )
    return trees.map(msgspec.msgpack.encode)


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """``good`` cut short, prolonged, or with some bytes changed."""
    data = bytearray(good)
    how = draw(st.sampled_from(["cut", "prolonged", "changed"]))
    if how == "cut":
        return bytes(data[: draw(st.integers(0, len(data) - 1))])
    if how == "prolonged":
        return bytes(data) + draw(st.binary(min_size=1, max_size=8))
    for place in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=4)):
        data[place] = draw(st.integers(0, 255))
    return bytes(data)


def _strategy(kind: mi.Type) -> st.SearchStrategy[Any]:
    match kind:
        case mi.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: _strategy(field.type) for field in fields})
        case mi.UnionType(types=types):
            return st.one_of([_strategy(one) for one in types])
        case mi.VarTupleType(item_type=item, min_length=low, max_length=high):
            most = max(low or 0, min(ITEMS_MAX, ITEMS_MAX if high is None else high))
            return st.lists(_strategy(item), min_size=low or 0, max_size=most).map(tuple)
        case mi.TupleType(item_types=items):
            return st.tuples(*map(_strategy, items))
        case mi.DictType(key_type=key, value_type=value):
            return st.dictionaries(_strategy(key), _strategy(value), max_size=ITEMS_MAX)
        case mi.EnumType(cls=cls):
            return st.sampled_from(cls)
        case mi.Metadata(type=inner):
            return _strategy(inner)
        case _:
            return _leaf(kind)


def _leaf(kind: mi.Type) -> st.SearchStrategy[Any]:
    match kind:
        case mi.IntType(ge=low, le=high):
            least = -(2**63) if low is None else low
            most = 2**63 - 1 if high is None else high
            return st.sampled_from([least, most]) | st.integers(least, most)
        case mi.FloatType(ge=low, le=high, gt=above):
            return st.floats(
                above if low is None else low, high, allow_nan=False, exclude_min=above is not None
            )
        case mi.StrType(pattern=str(pattern), max_length=high):
            most = sys.maxsize if high is None else high
            return st.from_regex(pattern).filter(lambda text: len(text) <= most)
        case mi.StrType(min_length=low, max_length=high):
            return st.text(min_size=low or 0, max_size=min(TEXT_MAX, high or TEXT_MAX))
        case mi.BytesType(min_length=low, max_length=high):
            return st.binary(min_size=low or 0, max_size=min(TEXT_MAX, high or TEXT_MAX))
        case mi.BoolType():
            return st.booleans()
        case mi.NoneType():
            return st.none()
        case mi.AnyType() | mi.CustomType(cls=builtins.object):
            return st.none() | st.booleans() | st.text(max_size=TEXT_MAX)
    raise AssertionError(f"no strategy for {kind}")
