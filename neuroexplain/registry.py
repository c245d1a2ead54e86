"""Kinds of units, scorers and formats by name: a file each in a folder of ours, or an entry point of another package.

Nothing is imported before it is asked for by name, so a command pays only for what it uses.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Generic, TypeVar

from neuroexplain.errors import NeuroexplainError

T = TypeVar("T")


class Registry(Generic[T]):
    """What a folder offers by name: each module but `base` is named like what it offers, and holds it as `attribute`.

    An installed package adds to it by an entry point of the group `neuroexplain.FOLDER`; a test or a notebook by `register`.
    """

    def __init__(self, folder: str, attribute: str, what: str) -> None:
        self.group, self._attribute, self._what = f"neuroexplain.{folder}", attribute, what
        self._registered: dict[str, T] = {}

    def register(self, name: str, offered: T) -> None:
        """Offer it under this name from now on in this process, in place of any other of that name."""
        self._registered[name] = offered

    def unregister(self, name: str) -> None:
        """Take back what was registered."""
        del self._registered[name]

    def names(self) -> tuple[str, ...]:
        """All that there are, in alphabetical order; ours are named with hyphens where their files have underscores."""
        installed = (point.name for point in entry_points(group=self.group))
        return tuple(sorted({*self._registered, *self._files(), *installed}))

    def find(self, name: str) -> T | None:
        """What is offered under this name, or None."""
        if name in self._registered:
            return self._registered[name]
        offered: T
        if (file := self._files().get(name)) is not None:
            offered = getattr(import_module(f"{self.group}.{file}"), self._attribute)
            return offered
        for point in entry_points(group=self.group, name=name):
            offered = point.load()
            return offered
        return None

    def load(self, name: str, option: str | None = None) -> T:
        """What is offered under this name. Raises NeuroexplainError, naming what there is, where there is none."""
        offered = self.find(name)
        if offered is None:
            asked = f"{option} {name!r}" if option else f"The {self._what} {name!r}"
            raise NeuroexplainError(f"{asked} is not known. There is {', '.join(self.names())}.")
        return offered

    def _files(self) -> dict[str, str]:
        """The folder's modules by what they offer; `base` and those that begin with an underscore offer nothing."""
        modules = (module.name for module in iter_modules(import_module(self.group).__path__))
        return {
            name.replace("_", "-"): name for name in modules if name != "base" and not name.startswith("_")
        }
