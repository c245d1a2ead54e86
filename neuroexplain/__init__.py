"""Find out what the neurons of a language model do: collect, explain, score, query."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`neuroexplain.open`, imported when it is first used: the command line starts sooner without it."""
    if name == "open":
        from neuroexplain import api

        return api.open
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
