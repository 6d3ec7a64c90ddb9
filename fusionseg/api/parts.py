"""Short names for a user's own networks, losses, optimizers and schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fusionseg.utils.errors import UserError

Part = TypeVar("Part", bound=Callable[..., Any])


def register_network(name: str) -> Callable[[Part], Part]:
    """Give a network of your own a short name, as a decorator of its class.

    A configuration can name a network by its dotted path, `model.name: my_nets:MyNet`, without any registration
    ([extending.md](extending.md) describes the arguments and the output of a network). The short name stands for this
    path in the Python process that has imported the module. Run folders hold the path, so that commands find the
    network.

    Args:
        name: the short name, for `model.name` and for `build_network`.

    Returns:
        A decorator that returns the class as it is.

    Raises:
        UserError: another network has the name, or the class cannot be imported by its dotted path: it is defined in a
            notebook, in a script or inside a function. Put it into a module.

    Example:
        >>> import fusionseg, my_nets
        >>> net = fusionseg.register_network("my_net")(my_nets.MyNet)
        >>> config = fusionseg.load_config("demo", {"model": {"name": "my_net", "args": {"width": 4}}})
        >>> config.model.name
        'my_nets:MyNet'
    """
    return _register("network", name)


def register_loss(name: str) -> Callable[[Part], Part]:
    """Give a loss of your own a short name for `loss.name`: see `register_network`.

    Args:
        name: the short name.

    Returns:
        A decorator that returns the class or function as it is.

    Raises:
        UserError: as for `register_network`.

    Example:
        >>> import fusionseg, my_nets
        >>> loss = fusionseg.register_loss("my_loss")(my_nets.MyLoss)
        >>> fusionseg.load_config("demo", {"loss": {"name": "my_loss"}}).loss.name
        'my_nets:MyLoss'
    """
    return _register("loss", name)


def register_optimizer(name: str) -> Callable[[Part], Part]:
    """Give an optimizer of your own a short name for `optim.name`: see `register_network`.

    Args:
        name: the short name.

    Returns:
        A decorator that returns the class or function as it is.

    Raises:
        UserError: as for `register_network`.

    Example:
        >>> import fusionseg, torch
        >>> optimizer = fusionseg.register_optimizer("rmsprop")(torch.optim.RMSprop)
        >>> fusionseg.load_config("demo", {"optim": {"name": "rmsprop", "lr": 0.001}}).optim.name
        'torch.optim.rmsprop:RMSprop'
    """
    return _register("optimizer", name)


def register_schedule(name: str) -> Callable[[Part], Part]:
    """Give a learning-rate schedule of your own a short name for `schedule.name`: see `register_network`.

    Args:
        name: the short name.

    Returns:
        A decorator that returns the class or function as it is.

    Raises:
        UserError: as for `register_network`.

    Example:
        >>> import fusionseg, my_nets
        >>> schedule = fusionseg.register_schedule("halved")(my_nets.halved)
        >>> fusionseg.load_config("demo", {"schedule": {"name": "halved"}}).schedule.name
        'my_nets:halved'
    """
    return _register("schedule", name)


def _register(kind: str, name: str) -> Callable[[Part], Part]:
    from fusionseg.config.registry import losses, networks, optimizers, schedules

    registries = {registry.kind: registry for registry in (networks, losses, optimizers, schedules)}

    def decorate(part: Part) -> Part:
        module, qualified = getattr(part, "__module__", None), getattr(part, "__qualname__", "<object>")
        if module in (None, "__main__") or "<" in qualified:
            raise UserError(
                f"{name}: {qualified} of {module} cannot be imported by other processes (expected a class or a function"
                " at the top of a module); put it into a file, and import it from there"
            )
        registries[kind].add_short_name(name, f"{module}:{qualified}")
        return part

    return decorate
