"""A decorator for functions that act on a guarded resource."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


class Guard(Protocol):
    """Anything that can seal a resource by itself (MemoryGuard, RedisGuard)."""

    def seal(self, resource: str, token: int) -> None:
        """Refuse lower tokens from now on."""
        ...


def fenced(
    guard: Guard, resource: str | Callable[..., str], *, argument: str = "token"
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Seal `resource` with the token in `argument` before the function runs.

    `resource` may be a function of the same arguments. Works for plain and for async functions.
    The seal comes before everything the function reads; a function that writes to SQL should use
    SqlGuard inside its transaction instead.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        if argument not in signature.parameters:
            raise TypeError(f"{function.__qualname__} has no argument {argument!r}")

        def check(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            where = resource if isinstance(resource, str) else resource(*args, **kwargs)
            guard.seal(where, int(bound.arguments[argument]))

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def call_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                check(args, kwargs)
                return await function(*args, **kwargs)

            return cast("Callable[P, R]", call_async)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            check(args, kwargs)
            return function(*args, **kwargs)

        return call

    return decorate
