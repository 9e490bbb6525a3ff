# SPDX-License-Identifier: Apache-2.0
"""Shapes and kinds of arrays that the annotations of `cop_repro` declare, checked in every test.

jaxtyping's import hook decorates each function of the package with `check_arrays`. Only arrays are
checked: a list of numbers is accepted where an array is, and annotations that name no array are
left to readers. Inside `pytest.raises` nothing is checked, because such a test asks for the
package's own error.
"""

import contextlib
import functools
import types
import typing

import pytest
from beartype import beartype
from jaxtyping import AbstractArray

NUMBERS = list | tuple | int | float  # accepted for an argument that is an array
checked_raises, _checking = pytest.raises, [True]


def names_array(annotation: object) -> bool:
    "Whether an annotation is an array of jaxtyping, or holds one."
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    return any(names_array(part) for part in typing.get_args(annotation))


def check_arrays(function: typing.Callable) -> typing.Callable:
    "The function, with every annotated array among its arguments and results checked."
    if not isinstance(function, types.FunctionType):
        return function
    kept = {name: a for name, a in function.__annotations__.items() if names_array(a)}
    if not kept:
        return function
    code, scope, closure = function.__code__, function.__globals__, function.__closure__
    copy = types.FunctionType(code, scope, function.__name__, function.__defaults__, closure)
    copy.__kwdefaults__, copy.__qualname__ = function.__kwdefaults__, function.__qualname__
    copy.__annotations__ = {n: a if n == "return" else a | NUMBERS for n, a in kept.items()}
    checked = beartype(copy)

    @functools.wraps(function)
    def call(*args, **kwargs):
        return (checked if _checking[0] else function)(*args, **kwargs)

    return call


@contextlib.contextmanager
def raises(*args, **kwargs):
    "`pytest.raises`, with arrays unchecked inside."
    before, _checking[0] = _checking[0], False
    try:
        with checked_raises(*args, **kwargs) as info:
            yield info
    finally:
        _checking[0] = before
