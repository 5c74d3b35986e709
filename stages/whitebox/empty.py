"""Build a model whose weights are about to be read, without drawing any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def without_values() -> Iterator[None]:
    """Modules that are made inside have parameters with shapes only, on the device `meta`.

    Nothing is drawn for them, which is more than a matter of time: there, torch.nn.init draws by way of
    torch._dynamo, and to import that takes as long again as torch itself (1.4 s).
    """
    with torch.device("meta"), _NothingIsDrawn():
        yield


class _NothingIsDrawn(TorchFunctionMode):
    """The functions of torch.nn.init that draw leave their tensor as it is."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)
