"""Forward hooks that stay behind when their module is copied or pickled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class LocalHook:
    """Calls a function; copies and pickles do nothing.

    A copy of a watched module is not watched, must not hold what the watcher holds, and can be pickled.

    Args:
        function: the hook, in torch's sense.
    """

    def __init__(self, function: Callable[..., Any] | None) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function, if there is one."""
        return None if self.function is None else self.function(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> LocalHook:
        return LocalHook(None)

    def __reduce__(self) -> tuple[type[LocalHook], tuple[None]]:
        return LocalHook, (None,)
