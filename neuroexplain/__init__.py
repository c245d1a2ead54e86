"""Find out what the neurons of a language model do: collect, explain, score, query."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`neuroexplain.open`, imported when it is first asked for: the command line starts without it."""
    if name == "open":
        from neuroexplain.api import open as opened

        return opened
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
