"""Parameters that several routes have, with their bounds."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Query, Request

from neuroexplain.units import MAX_INTEGER
from neuroexplain.web.reader import StoreReader


async def _reader(request: Request) -> StoreReader:
    """Async, because FastAPI would call a plain function in a thread of its own."""
    reader: StoreReader = request.app.state.reader
    return reader


Reader = Annotated[StoreReader, Depends(_reader)]
Number = Annotated[int, Path(ge=0, le=MAX_INTEGER)]
RunId = Annotated[
    int | None,
    Query(alias="run", ge=1, le=MAX_INTEGER, description="A run's id; without it, the latest finished run"),
]
Words = Annotated[str | None, Query(max_length=500)]
Like = Annotated[
    str | None,
    Query(max_length=500, description="A text: the nearest explanations by meaning, in place of sort"),
]
Token = Annotated[str | None, Query(max_length=100)]
Layers = Annotated[str | None, Query(max_length=100, description="15 or 3-5")]
Name = Annotated[str | None, Query(max_length=64)]
OldName = Annotated[
    str | None, Query(max_length=64, description="The old name of scorer", include_in_schema=False)
]
Compared = Annotated[
    str | None, Query(max_length=600, description="A run, explainer and model: 1/category/MODEL")
]
PageNumber = Annotated[int, Query(alias="page", ge=0, le=1000)]
