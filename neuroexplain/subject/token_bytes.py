"""The bytes that each token of a vocabulary stands for, for tokenizers of every family.

Decoding an id alone does not give them. Decoders of the Llama 2 family strip a leading space there, and a
token that is a part of a character decodes to U+FFFD. So the bytes come from the token's piece, by the rule
of its decoder:

- byte-level BPE (GPT-2, Llama 3, Qwen): each character of a piece stands for a byte;
- byte fallback (Llama 2, Mistral, Gemma): a piece like `<0xE2>` is a byte;
- end of word (`the</w>`): the suffix is a space;
- bytes as pieces (the tiktoken kind), or a character for each byte (ByT5);
- all others (sentencepiece's `▁the`, WordPiece's `##ing`, words): a piece is decoded after another one,
  an anchor, and stands for what it adds to the anchor's text. A leading space is part of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
Decode = Callable[[list[str]], str]  # pieces -> text
Rule = Callable[[str], bytes]  # a piece -> its bytes


def token_bytes(tokenizer: Any, ids: Sequence[int]) -> tuple[list[bytes], list[bool]]:
    """(each token's bytes, whether it is one byte of a byte fallback), in the order of ids."""
    rule = _find_rule(tokenizer)
    has_byte_pieces = {"<0x00>", "<0xFF>"} <= tokenizer.get_vocab().keys()
    data, are_bytes = [], []
    for piece in tokenizer.convert_ids_to_tokens(list(ids)):
        match = BYTE_PIECE.fullmatch(piece) if has_byte_pieces and isinstance(piece, str) else None
        are_bytes.append(match is not None)
        if match is not None:
            data.append(bytes.fromhex(match[1]))
        else:
            data.append(piece if isinstance(piece, bytes) else rule(piece))
    return data, are_bytes


def _find_rule(tokenizer: Any) -> Rule:
    """How a piece of this tokenizer becomes bytes."""
    parts = list(_parts(_decoder(tokenizer)))
    if any(part["type"] == "ByteLevel" for part in parts) or hasattr(tokenizer, "byte_decoder"):
        return _byte_level
    for part in parts:
        if part["type"] == "BPEDecoder":
            return partial(_end_of_word, suffix=part["suffix"])
    if _decode_pieces(tokenizer)(["\xc3", "\xa9"]) == "\xe9":
        return _latin_1
    return _rule_after_anchor(tokenizer)


def _decoder(tokenizer: Any) -> Mapping[str, Any] | None:
    """The description of a fast tokenizer's decoder; None for slow ones, and without a decoder."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    decoder: Mapping[str, Any] | None = json.loads(backend.to_str())["decoder"]
    return decoder


def _parts(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The decoders that a decoder consists of."""
    if decoder is not None and decoder["type"] == "Sequence":
        for part in decoder["decoders"]:
            yield from _parts(part)
    elif decoder is not None:
        yield decoder


@cache
def _byte_of_character() -> Mapping[str, int]:
    """GPT-2's characters for bytes: visible ones stand for themselves, the others for those from U+0100
    on.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    characters = {chr(byte): byte for byte in visible}
    return characters | {chr(0x100 + place): byte for place, byte in enumerate(hidden)}


def _byte_level(piece: str) -> bytes:
    """A byte-level piece's bytes. An added token with other characters, like a space, stands for its text."""
    table = _byte_of_character()
    if any(character not in table for character in piece):
        return piece.encode("utf-8", "replace")
    return bytes(table[character] for character in piece)


def _latin_1(piece: str) -> bytes:
    """A character for each byte (ByT5); special tokens stand for their text."""
    return piece.encode("latin-1" if len(piece) == 1 else "utf-8", "replace")


def _end_of_word(piece: str, suffix: str) -> bytes:
    return piece.replace(suffix, " ").encode("utf-8", "replace")


def _rule_after_anchor(tokenizer: Any) -> Rule:
    """A piece stands for what it adds to an anchor's text: the first piece whose text is a word and stays
    so.
    """
    decode = _decode_pieces(tokenizer)
    for anchor in sorted(piece for piece in tokenizer.get_vocab() if isinstance(piece, str)):
        if re.fullmatch(r"\u2581?[A-Za-z]+", anchor):
            text = decode([anchor])
            if text.isalpha() and decode([anchor, anchor]).startswith(text):
                return partial(_after_anchor, decode=decode, anchor=anchor, anchor_text=text)
    return partial(_after_anchor, decode=decode, anchor=None, anchor_text="")


def _after_anchor(piece: str, decode: Decode, anchor: str | None, anchor_text: str) -> bytes:
    pieces = [piece] if anchor is None else [anchor, piece]
    return decode(pieces).removeprefix(anchor_text).encode("utf-8", "replace")


def _decode_pieces(tokenizer: Any) -> Decode:
    """How the tokenizer joins pieces to text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.decoder is None:
        return " ".join
    decode: Decode = tokenizer.convert_tokens_to_string if backend is None else backend.decoder.decode
    return decode
