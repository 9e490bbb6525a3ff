"""Checks shapes and kinds of arrays that annotations of `cop_repro` declare, while tests run.

jaxtyping's import hook decorates every function of the package with `check_arrays`. Annotations
that name no array are left to readers: beartype would, for instance, refuse numpy's integers.
"""

import functools
import types
import typing

from beartype import beartype
from jaxtyping import AbstractArray


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
    copy = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    functools.update_wrapper(copy, function)
    del copy.__wrapped__
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = kept
    return beartype(copy)
