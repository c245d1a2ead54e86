"""Plug-ins by name: kinds of units, scorers and formats.

A plug-in is a file in one of our folders, or an entry point of another installed package. It is imported when
its name is looked up, so a command loads only what it uses.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Generic, TypeVar

from neuroexplain.errors import NeuroexplainError

T = TypeVar("T")


class Registry(Generic[T]):
    """The plug-ins of one folder. For example, the scorer `digits` is `SCORER` in scorers/digits.py.

    Each file of the folder defines one plug-in, in a variable that is called the same in all of them. The
    plug-in's name is the file's, with hyphens for underscores. `base.py`, files that begin with an
    underscore, and folders define none.

    Another package adds plug-ins by entry points in the group `neuroexplain.FOLDER`; a test or a notebook
    does so by `register`. Of equal names, a registered plug-in comes first, then a file, then an entry point.
    """

    def __init__(self, folder: str, variable: str, noun: str) -> None:
        """`noun` is the word for one plug-in in messages."""
        self.group, self._variable, self._noun = f"neuroexplain.{folder}", variable, noun
        self._registered: dict[str, T] = {}

    def register(self, name: str, plugin: T) -> None:
        """Add a plug-in for the rest of this process."""
        self._registered[name] = plugin

    def unregister(self, name: str) -> None:
        """Remove a plug-in that `register` added. Raises KeyError if there is none."""
        del self._registered[name]

    def names(self) -> tuple[str, ...]:
        """The names of all plug-ins, in alphabetical order."""
        installed = (point.name for point in entry_points(group=self.group))
        return tuple(sorted({*self._registered, *self._modules(), *installed}))

    def find(self, name: str) -> T | None:
        """The plug-in of this name, or None."""
        if name in self._registered:
            return self._registered[name]
        plugin: T
        module = self._modules().get(name)
        if module is not None:
            plugin = getattr(import_module(f"{self.group}.{module}"), self._variable)
            return plugin
        for point in entry_points(group=self.group, name=name):
            plugin = point.load()
            return plugin
        return None

    def load(self, name: str, option: str | None = None) -> T:
        """The plug-in of this name. Raises NeuroexplainError, listing all names, if there is none.

        option is the command's option that gave the name, for the message.
        """
        plugin = self.find(name)
        if plugin is None:
            subject = f"{option} {name!r}" if option else f"The {self._noun} {name!r}"
            raise NeuroexplainError(f"{subject} is not known. There is {', '.join(self.names())}.")
        return plugin

    def _modules(self) -> dict[str, str]:
        """The folder's modules that define plug-ins, by the plug-in's name."""
        modules = iter_modules(import_module(self.group).__path__)
        names = (module.name for module in modules if not module.ispkg)
        return {name.replace("_", "-"): name for name in names if name != "base" and not name.startswith("_")}
