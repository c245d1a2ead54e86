"""Latents of a dictionary as units: what the kinds `sae` and `transcoder` have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from neuroexplain.errors import NeuroexplainError
from neuroexplain.sources._choice import Choice
from neuroexplain.sources.base import Slices
from neuroexplain.units import Sign, Source, ranges_text

if TYPE_CHECKING:
    from torch import Tensor

    from neuroexplain.sources._health import Health
    from neuroexplain.sources.dictionaries._open import Member
    from neuroexplain.sources.dictionaries.base import Dictionary, LatentKind
    from neuroexplain.subject.model import Subject
    from neuroexplain.subject.sites import Site


class Latents:
    """All latents of a layer's dictionary. `Source.encoder` holds the choice of it as text."""

    sign: Sign = "positive"

    def __init__(self, kind: LatentKind, choice: Choice | None = None, any_model: bool = False) -> None:
        self.kind, self.activations = kind, (kind,)
        self._choice, self._any_model = choice, any_model

    def with_dictionary(self, choice: Choice, *, any_model: bool) -> Latents:
        return Latents(self.kind, choice, any_model)

    def layers(self) -> tuple[int, ...]:
        return tuple(self._members)

    def check(self, subject: Subject, sources: Mapping[int, Source], token_ids: Tensor) -> Iterator[Health]:
        """The figures of each layer's dictionary."""
        from neuroexplain.sources._health import measure_health

        return measure_health(subject, sources, token_ids)

    @cached_property
    def _members(self) -> dict[int, Member]:
        from neuroexplain.sources.dictionaries._open import find_members

        if self._choice is None:
            raise NeuroexplainError(
                f"--source {self.kind} reads a dictionary. Name its folder, or a name on the hub:  "
                "--dictionary FOLDER"
            )
        return find_members(self._choice, self.kind)

    def find(self, subject: Subject, layer: int, activation: str) -> Source:
        """Raises NeuroexplainError if the dictionary does not hold the layer or is another model's."""
        from neuroexplain.sources._fit import check_fit
        from neuroexplain.sources.dictionaries._open import fingerprint, read_member
        from neuroexplain.subject.sites import find_site

        member, choice = self._members.get(layer), self._choice
        assert choice is not None
        if member is None:
            raise NeuroexplainError(
                f"{choice.name} holds no dictionary of layer {layer}: it holds the layers "
                f"{ranges_text(self._members)}."
            )
        assert member.entry.site is not None
        site = find_site(subject, member.entry.site)
        dictionary = read_member(member, choice)
        check_fit(subject, member, dictionary, site, any_model=self._any_model)
        source = Source(
            layer=layer,
            kind=self.kind,
            module=site.module,
            side=site.side,
            width=dictionary.width,
            dtype=subject.dtype_name,
            encoder=choice.with_sha256(fingerprint(dictionary)).text,
        )
        subject.encoders[source] = (dictionary.on(subject.device), site)
        return source

    def encode(self, subject: Subject, source: Source, values: Tensor) -> Slices:
        """Raises NeuroexplainError if the dictionary is not there any more, or has other weights."""
        from neuroexplain.sources._encoding import encode, latents_at_once
        from neuroexplain.subject.sites import normalized

        dictionary, site = encoder_of(subject, source)
        dtype = values.dtype
        if site.is_normalized:
            values = normalized(subject.module(site.module), values)
        at_once = latents_at_once(values.shape[0] * values.shape[1])
        return ((units, acts.to(dtype)) for units, acts in encode(dictionary, values, at_once))

    def directions(self, subject: Subject, source: Source) -> Tensor:
        """The rows of the decoder."""
        return encoder_of(subject, source)[0].write_vectors.to(subject.device)

    def write_vectors(self, subject: Subject, source: Source) -> Tensor | None:
        """None if the dictionary writes where nothing is added to the stream."""
        from neuroexplain.sources.dictionaries._open import find_member
        from neuroexplain.subject.sites import added_to_stream, find_site

        dictionary, site = encoder_of(subject, source)
        member = find_member(source)
        if member.entry.written is not None:
            site = find_site(subject, member.entry.written)
        vectors = dictionary.write_vectors.to(subject.device).float() / dictionary.written_scale
        added = added_to_stream(subject, site, vectors)
        return None if added is None else added.to(subject.dtype)


def encoder_of(subject: Subject, source: Source) -> tuple[Dictionary, Site]:
    """The source's dictionary on the subject's device, and what it reads; read when it is first asked for."""
    from neuroexplain.sources.dictionaries._open import find_member, fingerprint, read_member
    from neuroexplain.subject.sites import find_site

    if source not in subject.encoders:
        assert source.encoder is not None
        choice, member = Choice.parse(source.encoder), find_member(source)
        dictionary = read_member(member, choice)
        if fingerprint(dictionary) != choice.sha256:
            raise NeuroexplainError(
                f"{member.place} is not the dictionary that the run was collected with: its weights differ."
            )
        assert member.entry.site is not None
        subject.encoders[source] = (dictionary.on(subject.device), find_site(subject, member.entry.site))
    encoder: tuple[Dictionary, Site] = subject.encoders[source]
    return encoder
