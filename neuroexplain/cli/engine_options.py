"""Options and environment variables -> the configuration of the LLM that answers."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from neuroexplain.config import EngineConfig


def default_engine(
    max_wait: float = 600.0, in_flight: int = 64, trust_remote_code: bool = False
) -> EngineConfig:
    """The default engine: the server that NEUROEXPLAIN_SERVER names, else one on this machine."""
    from neuroexplain.config import EngineConfig, find_api_key

    config = EngineConfig(
        api_key=find_api_key(),
        vllm_command=os.environ.get("NEUROEXPLAIN_VLLM"),
        max_wait=max_wait,
        in_flight=in_flight,
        trust_remote_code=trust_remote_code,
    )
    url = os.environ.get("NEUROEXPLAIN_SERVER")
    return replace(config, default_server=url) if url else config


def named_engine(
    default: EngineConfig,
    *,
    server: str | None,
    local: str | None,
    model: str | None,
    vllm: str | None = None,
    vllm_args: str = "",
    servers: str | None = None,
    base_server: str | None = None,
    base_servers: str | None = None,
    tokenizer: str | None = None,
) -> EngineConfig | None:
    """The engine that the options name; None where they name none.

    A model without a server is one of `base_server`'s or `base_servers`' models, or of the default server's.
    """
    if server is None and servers is None and local is None and vllm is None:
        if model is None and tokenizer is None:
            return None
        server, servers = base_server, base_servers
    words: list[str] = []
    if vllm_args:
        from neuroexplain.llm.vllm import split_words

        words = split_words(vllm_args, "--vllm-args")
    return replace(
        default,
        server=server,
        servers=servers,
        vllm=vllm,
        vllm_args=tuple(words),
        local=local,
        model=model,
        tokenizer=tokenizer,
    )


def engines_of(context: typer.Context) -> tuple[EngineConfig, EngineConfig | None]:
    """(the engine of the LLM options, the scorers' own engine or None) of `explain` or `score`."""
    options = context.params
    default = default_engine(options["max_wait"], options["in_flight"], options["trust_remote_code"])
    names = ("server", "local", "model", "tokenizer")
    engine = named_engine(
        default,
        vllm=options["vllm"],
        vllm_args=options["vllm_args"],
        servers=options["servers"],
        **{name: options[name] for name in names},
    )
    own = {name: options[f"simulator_{name}"] for name in names}
    base = {f"base_{name}": options[name] for name in ("server", "servers")}
    return engine or default, named_engine(default, **base, **own)
