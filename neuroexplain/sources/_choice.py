"""Which dictionaries the user named, and what their folder does not tell; as text in `Source.encoder`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlencode


@dataclass(frozen=True)
class Choice:
    """`--dictionary` and the options that go with it."""

    name: str  # folder, glob of folders, or hub name, with or without a folder below
    site: str | None = None  # what is read, a hook's name with or without its layer; None: the folder tells
    input_scale: float | None = None  # factor on what is read; None: the folder tells
    subtract_b_dec: bool | None = None  # before encoding; None: the format's rule
    sha256: str | None = None  # of the weights (their fingerprint); None while they have not been read

    @property
    def text(self) -> str:
        """The choice as text: the name, then all else as in a URL's query."""
        values = {name: value for name, value in vars(self).items() if name != "name" and value is not None}
        return f"{self.name}?{urlencode(values)}"

    @classmethod
    def parse(cls, text: str) -> Choice:
        """The choice of its text."""
        name, _, query = text.rpartition("?")
        values = dict(parse_qsl(query))
        scale, subtract = values.get("input_scale"), values.get("subtract_b_dec")
        return cls(
            name,
            values.get("site"),
            None if scale is None else float(scale),
            None if subtract is None else subtract == "True",
            values.get("sha256"),
        )

    def with_sha256(self, sha256: str) -> Choice:
        """The choice of these weights alone."""
        return replace(self, sha256=sha256)
