"""Find out what the neurons of a language model do: collect, explain, score, query."""

__version__ = "0.1.0"
