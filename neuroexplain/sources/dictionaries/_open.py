"""A folder or hub name -> its dictionaries by layer, found without reading weights; and one of them, read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from neuroexplain.errors import NeuroexplainError
from neuroexplain.sources._choice import Choice
from neuroexplain.sources.dictionaries._files import Folder, open_folder
from neuroexplain.sources.dictionaries._names import layer_in
from neuroexplain.sources.dictionaries.base import FORMATS, Dictionary, Entry, Format, LatentKind
from neuroexplain.units import Source, ranges_text

if TYPE_CHECKING:
    from torch import Tensor

MOST_LISTED = 5  # names in a message
NOUNS = {"sae": "SAEs", "transcoder": "transcoders"}


@dataclass(frozen=True)
class Member:
    """One dictionary of a folder: what is known before it is read, and what reads it."""

    folder: Folder
    format: Format
    entry: Entry

    @property
    def place(self) -> str:
        """Its folder or file, for messages."""
        return self.folder.place(self.entry.where)


def find_members(choice: Choice, kind: LatentKind) -> dict[int, Member]:
    """The dictionaries of a kind, one for each layer, by layer in ascending order.

    Raises NeuroexplainError if there is none, if a layer has several, or if no folder tells what it
    reads.
    """
    folder = open_folder(choice.name)
    members = [
        Member(folder, plugin, entry)
        for plugin in map(FORMATS.load, FORMATS.names())
        for entry in plugin.find(folder)
    ]
    if not members:
        raise _no_dictionary(choice, folder)
    of_kind = [member for member in members if member.entry.kind == kind]
    if not of_kind:
        other = members[0].entry.kind
        layers = ranges_text({m.entry.layer for m in members if m.entry.layer is not None})
        raise NeuroexplainError(
            f"{choice.name} holds no {NOUNS[kind]}, but {NOUNS[other]} of the layers {layers}. "
            f"Collect those:  --source {other}"
        )
    by_layer: dict[int, list[Member]] = {}
    for member in of_kind:
        entry = _placed(member.entry, choice)
        if entry.layer is not None and entry.site is not None:
            by_layer.setdefault(entry.layer, []).append(replace(member, entry=entry))
    if not by_layer:
        raise _no_place(of_kind[0])
    for layer, several in by_layer.items():
        if len(several) > 1:
            raise _ambiguous(choice, layer, several)
    return {layer: by_layer[layer][0] for layer in sorted(by_layer)}


def find_member(source: Source) -> Member:
    """The dictionary that a source's latents come from. Raises NeuroexplainError if it is not there."""
    assert source.encoder is not None
    choice = Choice.parse(source.encoder)
    kind: LatentKind = "transcoder" if source.kind == "transcoder" else "sae"
    members = find_members(choice, kind)
    if source.layer not in members:
        raise NeuroexplainError(
            f"{choice.name} holds no dictionary of layer {source.layer} any more, with which the run was "
            f"collected: it holds the layers {ranges_text(members)}."
        )
    return members[source.layer]


def read_member(member: Member, choice: Choice) -> Dictionary:
    """The dictionary, on the CPU. Raises NeuroexplainError if it cannot be read or does not fit together."""
    dictionary = member.format.read(member.folder, member.entry, choice.input_scale)
    if choice.subtract_b_dec is not None:
        dictionary = replace(dictionary, pre_bias=dictionary.output_bias if choice.subtract_b_dec else None)
    if choice.input_scale is not None:
        written = choice.input_scale if member.entry.kind == "sae" else dictionary.written_scale
        dictionary = replace(dictionary, scale=choice.input_scale, written_scale=written)
    faults = dictionary.faults()
    if faults:
        raise NeuroexplainError(
            f"{member.place} ({member.format.name}) does not fit together: {'; '.join(faults)}. Its files "
            "are of different dictionaries, or of a version that is not known."
        )
    return dictionary


def fingerprint(dictionary: Dictionary) -> str:
    """A hash of 64 values or more of each tensor that decides activations: tells dictionaries apart."""
    import torch

    parts: list[Tensor] = [dictionary.encoder, dictionary.bias, dictionary.write_vectors]
    parts += [value for value in vars(dictionary.rule).values() if isinstance(value, torch.Tensor)]
    if dictionary.pre_bias is not None:
        parts.append(dictionary.pre_bias)
    samples = []
    for tensor in parts:
        values = tensor.reshape(-1)
        samples.append(values[:: max(1, len(values) // 64)].float())
    numbers = repr((dictionary.norm, dictionary.scale, getattr(dictionary.rule, "k", None)))
    content = torch.cat(samples).cpu().numpy().astype("<f4").tobytes() + numbers.encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _placed(entry: Entry, choice: Choice) -> Entry:
    """The entry with the layer and the site that the user named."""
    if choice.site is None:
        return entry
    named = layer_in(choice.site)
    if named is not None:
        return replace(entry, layer=named, site=choice.site)
    return replace(entry, site=f"blocks.{entry.layer}.{choice.site}")


def _no_place(member: Member) -> NeuroexplainError:
    missing = "which layer" if member.entry.layer is None else "where in the model"
    return NeuroexplainError(
        f"{member.place} ({member.format.name}) does not tell {missing} it reads. Name the place by its "
        "hook:  --site blocks.12.hook_resid_post"
    )


def _no_dictionary(choice: Choice, folder: Folder) -> NeuroexplainError:
    files = ", ".join(folder.names[:MOST_LISTED]) or "no file"
    more = f" and {len(folder.names) - MOST_LISTED:,} more" if len(folder.names) > MOST_LISTED else ""
    plugins = [FORMATS.load(name) for name in FORMATS.names()]
    known = "\n".join(f"  {plugin.name}: {plugin.files}" for plugin in plugins)
    return NeuroexplainError(
        f"{choice.name} holds no dictionary that is known. It holds {files}{more}; a dictionary is one of\n"
        f"{known}\nIf files are missing, copy or download it again; else give the folder above or below."
    )


def _ambiguous(choice: Choice, layer: int, members: list[Member]) -> NeuroexplainError:
    names = ", ".join(member.entry.where or "." for member in members[:MOST_LISTED])
    more = f" and {len(members) - MOST_LISTED} more" if len(members) > MOST_LISTED else ""
    return NeuroexplainError(
        f"{choice.name} holds {len(members)} {NOUNS[members[0].entry.kind]} of layer {layer}: {names}{more}. "
        "Choose one for each layer, by a folder or a glob:  "
        "--dictionary 'FOLDER/layer_*/width_16k/average_l0_7*'"
    )
