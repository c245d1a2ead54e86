"""Requests to the scripted server of conftest.py, and an answer that it gives."""

from neuroexplain.llm.engine import Message
from neuroexplain.llm.server import ServerEngine


def completion(text, **usage):
    return 200, {"choices": [{"text": text}], "usage": {"completion_tokens": 3, **usage}}


def connect(scripted, **options):
    return ServerEngine(scripted.url, **{"max_wait": 3.0, **options})


def generate(engine):
    return engine.generate([Message("user", "the old mill")], max_tokens=5, temperature=0.0, seed=1)
