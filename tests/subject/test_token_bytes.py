"""The text of each token, for every family of tokenizers: joined, a record's texts are the decoded record."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

from neuroexplain.evidence import VocabularyEntry, texts_in_context
from neuroexplain.subject.tokenizer import tokenizer_sha256, vocabulary_entries

TEXTS = (
    "the city said the Sheraton-Dallas Hotel",
    "don't stop, won't you? it's 3.5%",
    "naïve café, 日本語 and 🙂👍🏽 smile",
    "  two  spaces\n\nlines\t tab",
)
CORPUS = [text for text in TEXTS for _ in range(20)]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def byte_fallback():
    """As Llama 2: no piece for what the training text lacks, and one leading space less in decoded text."""
    pieces = {
        piece: i for i, piece in enumerate(["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))])
    }
    for character in "▁abcdefghijklmnopqrstuvwxyzSDH-',?.%35":
        pieces[character] = len(pieces)
    merges = []
    for word in ("▁the", "▁city", "▁said"):
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces:
                pieces[word[:end]] = len(pieces)
                merges.append((word[: end - 1], word[end - 1]))
    model = models.BPE(pieces, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    replace = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence(
        [replace, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, tokenizer.token_to_id(name)) for name in special[1:]]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", sep_token="[SEP]")


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def words():
    """Words without a decoder, which Transformers joins by spaces."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=["[UNK]"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def end_of_word():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>"], end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


class BytePieces(PreTrainedTokenizer):
    """As tokenizers of the tiktoken kind whose code comes with the model: pieces are bytes, two at a time."""

    def __init__(self):
        data = [f"{text}x 🙂 ".encode() for text in TEXTS]
        pairs = [own[i : i + 2] for own in data for i in range(len(own) - 1)]
        singles = [bytes([i]) for i in range(256)]
        self.pieces = list(dict.fromkeys([*singles, *pairs]))
        self.ids = {piece: i for i, piece in enumerate(self.pieces)}
        super().__init__()

    @property
    def vocab_size(self):
        return len(self.pieces)

    def get_vocab(self):
        return dict(self.ids)

    def _tokenize(self, text, **options):
        data = text.encode()
        return [data[i : i + 2] for i in range(0, len(data), 2)]

    def _convert_token_to_id(self, piece):
        return self.ids[piece]

    def _convert_id_to_token(self, i):
        return self.pieces[i]

    def convert_tokens_to_string(self, pieces):
        return b"".join(p if isinstance(p, bytes) else p.encode() for p in pieces).decode("utf-8", "replace")


FAMILIES = {
    "byte level": byte_level,
    "byte fallback": byte_fallback,
    "WordPiece": word_piece,
    "unigram": unigram,
    "words": words,
    "end of word": end_of_word,
    "bytes as pieces": BytePieces,
    "a character a byte": ByT5Tokenizer,
}


def record_texts(tokenizer, ids):
    entries = {entry.token_id: entry for entry in vocabulary_entries(tokenizer)}
    return texts_in_context([entries[i] for i in ids])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_the_texts_of_a_record_joined_are_the_decoded_record(family, text):
    tokenizer = FAMILIES[family]()
    ids = tokenizer(text).input_ids
    for first in (0, 2, 5):  # a record begins anywhere, also within a character
        window = ids[first:]
        decoded = tokenizer.decode(window, clean_up_tokenization_spaces=False)
        if family == "a character a byte" and "\ufffd" in "".join(record_texts(tokenizer, window)):
            continue  # it leaves out what is no character
        decoded = decoded.removeprefix(
            "##"
        )  # WordPiece's mark of a word's later part, which has no part before
        # Decoders strip one space at the begin (sentencepiece, WordPiece) or the end (end of word).
        assert "".join(record_texts(tokenizer, window)) in (decoded, f" {decoded}", f"{decoded} ")


@pytest.mark.parametrize("family", ["byte fallback", "WordPiece", "unigram", "words"])
def test_a_leading_space_is_part_of_a_tokens_text(family):
    tokenizer = FAMILIES[family]()
    entries = vocabulary_entries(tokenizer)
    assert sum(entry.text.startswith(" ") for entry in entries) > 3
    texts = record_texts(tokenizer, tokenizer("the city said", add_special_tokens=False).input_ids)
    assert "".join(texts).split(" ")[-2:] == ["city", "said"]
    assert any(text.startswith(" ") for text in texts[1:])


@pytest.mark.parametrize("family", ["byte level", "byte fallback", "bytes as pieces", "a character a byte"])
def test_a_character_of_several_tokens_stands_with_the_first_of_them(family):
    tokenizer = FAMILIES[family]()
    ids = tokenizer("x 🙂", add_special_tokens=False).input_ids
    texts = record_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert sum("🙂" in text for text in texts) == 1
    assert texts[-1] == ""
    assert "\ufffd" not in "".join(texts)


def test_parts_of_characters_at_the_edges_are_shown_as_the_tokenizer_shows_them():
    entries = [VocabularyEntry(i, "\ufffd", False, bytes([byte])) for i, byte in enumerate("🙂".encode())]
    fallback = [VocabularyEntry(e.token_id, e.text, False, e.data, is_byte=True) for e in entries]
    assert texts_in_context(entries[:3]) == ["\ufffd", "", ""]
    assert texts_in_context(fallback[:3]) == ["\ufffd", "\ufffd", "\ufffd"]
    assert texts_in_context(entries[2:]) == ["\ufffd", "\ufffd"]  # no character begins with either
    assert texts_in_context([*entries, *entries]) == ["🙂", "", "", ""] * 2


def test_tokens_of_an_earlier_version_keep_their_texts():
    known = VocabularyEntry(0, "\ufffd", False, b"\xf0")
    assert texts_in_context([known, VocabularyEntry(1, "the", False), known]) == ["\ufffd", "the", "\ufffd"]


def test_vocabularies_with_bytes_have_a_hash():
    assert tokenizer_sha256(BytePieces()) == tokenizer_sha256(BytePieces())
    assert tokenizer_sha256(BytePieces()) != tokenizer_sha256(byte_level())


@pytest.mark.parametrize(
    ("text", "data", "label"),
    [
        (" the", b" the", " the"),
        ("\ufffd", b"\xf0\x9f", "<F0 9F>"),
        (" \ufffd", b" \xe2", "<20 E2>"),
        ("\ufffd", "\ufffd".encode(), "\ufffd"),  # the character itself
        ("\ufffd", None, "\ufffd"),  # of an earlier version
    ],
)
def test_parts_of_characters_alone_are_shown_by_their_bytes(text, data, label):
    assert VocabularyEntry(0, text, False, data).label == label
