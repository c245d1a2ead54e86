"""Rules that give the characters of a text an activation, from which a neuron of known behaviour is made."""

import re
from collections.abc import Callable

from neuroexplain.stable_hash import stable_hash

Span = tuple[int, int, float]  # first character, one after the last, activation in 0..1
Rule = Callable[[str], list[Span]]

WEAK = 0.45  # of a word that the neuron barely responds to: below half of a strong one's

FRENCH = (
    "je ne sais pas il est parti avec les autres merci beaucoup vous êtes très gentil sous le ciel c'est"
    " la vie peut tout avoir dans ce monde mon cher ami écris de maison où nous avons passé l'été dernier"
    " pleut toujours et enfants sont malades venez quand pourrez mais dites rien à votre frère ça fait"
    " ouvrez valises s'il plaît n'y a ici que des livres du une qui pour sur au aux monsieur madame"
)
GERMAN = (
    "wo ist der schlüssel das nicht mein zimmer ich wohne unter dem dach und tür immer offen kommen sie"
    " bitte mit mir ein schiff wird wir fahren über meer denn morgen neuer tag niemand weiß er bringt gute"
    " nacht meine freunde leben gnädige frau machen koffer auf nur alte bücher paar schuhe herr von eine"
    " zu"
)
SPANISH = (
    "dónde está la casa de mi hermano siga usted por esta calle hasta iglesia y luego derecha muchas"
    " gracias pero tengo dinero importa hija el sol es para todos los hombres que saben reír son como ríos"
    " agua mañana vamos montaña caballos porque camino cerrado sera vieja noche larga viento espera aquí"
    " hay nada más estrellas calla mira red señor señora"
)
LATIN = (
    "non scholae sed vitae discimus astra aspera gratias agimus tibi domine pro his donis saecula"
    " saeculorum dura lex et ad"
)
# Words of these languages that are English words too.
ENGLISH_TOO = (
    "a ami in on no me so die it is his was war tag am do ne the as to red sol sur tout son hay he an pro"
    " per ad son"
)


def words(strong: str, weak: str = "") -> Rule:
    """Whole words in any casing, each with a strength of its own: of weak words less than half."""
    strength = {word: _strength(word) for word in strong.split()}
    strength |= {word: WEAK * _strength(word) for word in weak.split()}
    alternatives = "|".join(map(re.escape, sorted(strength, key=len, reverse=True)))
    whole_word = re.compile(rf"(?<![\w'-])(?:{alternatives})(?![\w-])", re.I)
    return lambda text: [(*m.span(), strength[m[0].lower()]) for m in whole_word.finditer(text)]


def _strength(word: str) -> float:
    return 0.7 + 0.3 * (stable_hash(word) % 100) / 99


def pattern(*parts: tuple[str, float], flags: int = 0) -> Rule:
    """Regular expressions, each with the activation of its matches, or of its first group if it has one."""
    compiled = [(re.compile(expression, flags), value) for expression, value in parts]
    return lambda text: [(*m.span(bool(c.groups)), value) for c, value in compiled for m in c.finditer(text)]


def theme(strong: str, weak: str = "") -> Rule:
    """Words of a theme, and after each of them the next 60 characters of its sentence, fading."""
    theme_words = words(strong, weak)

    def rule(text: str) -> list[Span]:
        spans = []
        for start, end, value in theme_words(text):
            spans.append((start, end, value))
            for m in re.finditer(r"[^\s.?!]+", text[end : end + 60]):
                spans.append((end + m.start(), end + m.end(), 0.4 * value * (1 - m.start() / 60)))
        return spans

    return rule


def inside(opening: str, closing: str, longest: int) -> Rule:
    """The text between two marks on one line, of at most `longest` characters; stronger at its beginning."""
    between = re.compile(
        rf"(?<![\w.,?!;]){opening}(?=[\w'])([^{opening}{closing}\n]{{2,{longest}}}){closing}"
    )

    def rule(text: str) -> list[Span]:
        spans = []
        for m in between.finditer(text):
            for i, word in enumerate(re.finditer(r"\S+", m[1])):
                start, end = m.start(1) + word.start(), m.start(1) + word.end()
                spans.append((start, end, max(0.5, 1 - 0.08 * i)))
        return spans

    return rule


def repeated(text: str) -> list[Span]:
    """Names and longer words that are also in the 200 characters before."""
    spans = []
    for m in re.finditer(r"[A-Za-z]{5,}", text):
        before = re.findall(r"[A-Za-z]+", text[max(0, m.start() - 200) : m.start()])
        n = before.count(m[0])
        if n > 0:
            spans.append((*m.span(), min(1.0, 0.6 + 0.2 * n)))
    return spans


def foreign(vocabulary: str) -> Rule:
    """A language's words in quotation marks, if most words there are foreign: no English is taken."""
    of_language = set(vocabulary.split())
    of_all_languages = set(f"{FRENCH} {GERMAN} {SPANISH} {LATIN}".split())
    ambiguous = set(ENGLISH_TOO.split())

    def rule(text: str) -> list[Span]:
        spans: list[Span] = []
        for quote in re.finditer(r'"([^"]+)"', text):
            first = quote.start(1)
            places = [(first + m.start(), first + m.end()) for m in re.finditer(r"[\w']+", quote[1])]
            quoted = [text[start:end].lower() for start, end in places]
            n_foreign = sum(word in of_all_languages and word not in ambiguous for word in quoted)
            if not n_foreign or n_foreign * 2 < len(quoted):
                continue
            if sum(word in of_language for word in quoted) / len(quoted) >= 0.6:
                for (start, end), word in zip(places, quoted, strict=True):
                    spans.append((start, end, 0.8 + 0.2 * (len(word) > 3)))
        return spans

    return rule
