"""Registries: the parts that a configuration can name, one registry for each kind.

A built-in part registers itself with a decorator, in a module of the package that is the home of its kind:

    @networks.register("unet", "resunet")
    class UNetConfig(NetworkSection): ...

The home is imported by its name at the first lookup, so that `config` does not depend on the rooms of the parts. A name
with a colon is a dotted path to a part from outside, `package.module:Attribute`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar, get_args

from fusionseg.config.outside import FORM, PartError, import_part, is_outside
from fusionseg.utils.errors import UserError, suggest

Part = TypeVar("Part")


class Registry:
    """The parts of one kind, by name.

    Args:
        kind: the kind in the singular, for messages: "network".
        key: the configuration key that holds the name, for messages: "model.name".
        home: the module or package that holds the built-in parts. Of a package, each module directly in it is
            imported.
    """

    def __init__(self, kind: str, key: str, home: str) -> None:
        self.kind = kind
        self.key = key
        self.home = home
        self.outside: Any = None
        """For a kind whose parts are sections: the section of a part from outside."""
        self._parts: dict[str, Any] = {}
        self._dotted_paths: dict[str, str] = {}
        self._home_is_imported = False

    def register(self, *names: str) -> Callable[[Part], Part]:
        """Decorate a built-in part with the names that a configuration gives it.

        Args:
            names: the names. Without them, they are those of the Literal that the section declares as `name`.

        Raises:
            ValueError: another part has one of the names.
        """

        def decorate(part: Part) -> Part:
            for name in names or _literal_names(part):
                if name in self._parts and self._parts[name] is not part:
                    raise ValueError(f"two {self.kind} parts are registered as {name!r}")
                self._parts[name] = part
            return part

        return decorate

    def register_outside(self, section: Part) -> Part:
        """Decorate the section that parts from outside have."""
        self.outside = section
        return section

    def add_short_name(self, name: str, path: str) -> None:
        """Give a part from outside a short name, in this process. Configurations are written with its dotted path.

        Raises:
            UserError: a built-in part or another part from outside has the name.
        """
        if name in self.built_in() or self._dotted_paths.get(name, path) != path:
            raise UserError(f"{name}: is the name of another {self.kind}; choose another name")
        self._dotted_paths[name] = path

    def full_name(self, name: str) -> str:
        """The dotted path of a short name; any other name as it is."""
        return self._dotted_paths.get(name, name)

    def built_in(self) -> dict[str, Any]:
        """The built-in parts by name, module by module of their home."""
        if not self._home_is_imported:
            self._home_is_imported = True  # set first, since a module of the home may ask for the names
            try:
                self._import_home()
            except BaseException:
                self._home_is_imported = False
                raise
        return dict(self._parts)

    def _import_home(self) -> None:
        home = importlib.import_module(self.home)
        modules = [f"{self.home}.{entry.name}" for entry in pkgutil.iter_modules(getattr(home, "__path__", []))]
        for module in modules:
            importlib.import_module(module)
        # The order of the names must not depend on the order of the imports.
        order = {module: index for index, module in enumerate(modules)}
        self._parts = dict(sorted(self._parts.items(), key=lambda item: order.get(item[1].__module__, -1)))

    def names(self) -> list[str]:
        """The names of the built-in parts."""
        return list(self.built_in())

    def find(self, name: str, found_in: str | None = None) -> Any:
        """Find the part of a name: a built-in one, or a part from outside by its dotted path.

        Args:
            name: a name of `names()`, or `package.module:Attribute`.
            found_in: the folder that a run has recorded for a part from outside.

        Raises:
            PartError: there is no such part; the message does not have the key.
        """
        if is_outside(name):
            return import_part(name, found_in)
        parts = self.built_in()
        if name not in parts:
            raise PartError(f"there is no {self.kind} {name!r}; {suggest(name, parts)}{_dotted_hint(name)}")
        return parts[name]

    def section(self, name: str) -> Any:
        """The section class of a name, for a kind whose parts are sections. A part from outside is not imported.

        Raises:
            PartError: there is no such part.
        """
        parts, name = self.built_in(), self.full_name(name)
        return self.outside if is_outside(name) and self.outside is not None else parts.get(name) or self.find(name)

    def lookup(self, name: str, found_in: str | None = None, *, key: str | None = None) -> Any:
        """Find the part of a name as `find` does, with an error message for the user.

        Args:
            name, found_in: see `find`.
            key: the key that the message begins with; None for the key of the registry.

        Raises:
            UserError: there is no such part.
        """
        try:
            return self.find(name, found_in)
        except PartError as error:
            raise UserError(f"{key or self.key}: {error}") from error


def _literal_names(section: Any) -> tuple[str, ...]:
    names: tuple[str, ...] = get_args(section.model_fields["name"].annotation)
    assert names, f"{section}: register it with names, or declare name as a Literal"
    return names


def _dotted_hint(name: str) -> str:
    """A hint for a user who has written a dotted path without its colon."""
    module, _, attribute = name.rpartition(".")
    if not module:
        return f", or {FORM} for one of your own"
    return f" (for a part from outside write {module}:{attribute})"


networks: Registry = Registry("network", "model.name", "fusionseg.models.networks")
losses: Registry = Registry("loss", "loss.name", "fusionseg.losses.named")
metrics: Registry = Registry("metric", "metrics", "fusionseg.metrics.named")
optimizers: Registry = Registry("optimizer", "optim.name", "fusionseg.training.optimizers")
schedules: Registry = Registry("schedule", "schedule.name", "fusionseg.training.schedules")
augmentations: Registry = Registry("augmentation", "augment", "fusionseg.data.loading.intensity")
transforms: Registry = Registry("transform", "data.transforms", "fusionseg.data.preprocessing.transforms")
readers: Registry = Registry("reader", "data.reader", "fusionseg.data.formats.readers")
tasks: Registry = Registry("task", "task", "fusionseg.training.tasks.named")
