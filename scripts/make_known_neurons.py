# ruff: noqa: E501 (a neuron is a table row)
"""Neurons whose behaviour is known by construction:  python scripts/make_known_neurons.py brown.jsonl.gz

Each is a rule that gives every token of a text its activation, what a person would say of it, and five explanations that are
false but tempting: the same theme in another form, too wide, too narrow, a frequent neighbour, a plausible other. The rules run
over every third document of the Brown corpus and the passages below, which are our own and hold the foreign words that Brown's
files have lost. Writes tests/known/neurons.json for scripts/eval_simulators.py.
"""

import gzip
import json
import random
import re
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from neuroexplain.stable_hash import stable_hash
from neuroexplain.subject.load import embedded_model

OUT = Path(__file__).parent.parent / "tests" / "known" / "neurons.json"
LENGTH = 64  # tokens of a record
RECORDS = 6  # top, and as many random
TOO_NEAR = 8  # a peak this near to the record's ends is no top record: its context would be missing
PIECE = 0.7  # what a later piece of a word has of the first one's activation
WEAK = 0.45
STRONG = 0.7

PASSAGES = [
    'The waiter shrugged. "Je ne sais pas, monsieur," he said, and then, more kindly, "il est parti avec les autres." She thanked'
    ' him in her best school accent: "Merci beaucoup, vous êtes très gentil." Outside the rain had stopped. A boy on a bicycle sang'
    ' "sous le ciel de Paris" and the old man at the kiosk folded his newspaper. "C\'est la vie, madame," he told her. "On ne peut pas'
    ' tout avoir dans ce monde." She wrote it down in her notebook, next to the address of the hotel.',
    'Grandmother kept a small box of letters tied with blue string. "Mon cher ami," began the first, "je vous écris de la maison où'
    ' nous avons passé l\'été dernier." The ink was brown. The second was shorter: "Il pleut toujours et les enfants sont malades. Venez'
    ' quand vous pourrez, mais ne dites rien à votre frère." Nobody in the family had ever known who wrote them, and the stamps had'
    " been cut away.",
    '"Wo ist der Schlüssel?" asked the landlady, and when nobody answered she went up the stairs herself. "Das ist nicht mein Zimmer,"'
    ' said the student. "Ich wohne unter dem Dach, und die Tür war immer offen." She looked at him over her glasses. "Kommen Sie'
    ' bitte mit mir," she said at last. They found the key in the kitchen, under a pan, where the cat had been asleep all morning.',
    'The song went round the table twice. "Ein Schiff wird kommen, und wir fahren über das Meer," sang the carpenter, who had learned'
    ' it from his father. The others joined in where they could: "denn morgen ist ein neuer Tag, und niemand weiß, was er bringt." Then'
    ' the lamp went out, and somebody laughed. "Gute Nacht, meine Freunde," said the carpenter. The dog followed him out into the snow.',
    '"¿Dónde está la casa de mi hermano?" she asked the policeman. He pointed with his stick. "Siga usted por esta calle hasta la'
    ' iglesia, y luego a la derecha." The church was white and very plain. A woman was selling oranges on the steps. "Muchas gracias,'
    ' pero no tengo dinero," said the girl. "No importa, hija, el sol es para todos," said the woman, and gave her two.',
    'On the wall of the tavern somebody had painted in red letters: "Los hombres que no saben reír son como los ríos sin agua." The'
    ' captain read it aloud for the benefit of his men. "Mañana vamos a la montaña con los caballos," said the guide, "porque el camino'
    ' está cerrado." It was not good news. They ordered another bottle and talked about the price of wool.',
    'Over the door of the library the founders had cut the words "non scholae sed vitae discimus", and the boys made jokes about them.'
    ' In the hall hung a portrait of the first master with his motto, "ad astra per aspera". The old chaplain still ended every dinner'
    ' with "gratias agimus tibi, domine, pro his donis", and nobody sat down until he had said "in saecula saeculorum". Then the'
    " benches scraped and the noise began again.",
    'My aunt had two answers to every trouble. When it was small she said "ça ne fait rien", and when it was large she said "que sera'
    ' sera" and put the kettle on. Her husband, who had studied law, preferred "dura lex sed lex". The postman, an exile from Bremen,'
    ' nodded at both and said "so ist das Leben, gnädige Frau". I thought then that all grown people had a language for bad news.',
    'At the border they searched the coach. "Ouvrez les valises, s\'il vous plaît," said the first officer. "Machen Sie bitte die'
    ' Koffer auf," said the second, in case we had not understood. "Il n\'y a rien ici que des livres," called my sister. "Nur alte'
    ' Bücher und ein Paar Schuhe," she added for the other. They laughed, and waved us through into the tunnel.',
    'The fisherman spoke to the boat as to a mule. "Vamos, vieja, que la noche es larga y el viento no espera." His son had a radio'
    ' that only got one station. "Aquí no hay nada más que estrellas," the boy complained. "Calla y mira la red," said the father. The'
    " lights of the harbor were still in sight, and the nets came up full of small silver fish.",
]

Rule = Callable[
    [str], list[tuple[int, int, float]]
]  # text -> (first character, one after the last, activation 0..1)


def words(strong: str, weak: str = "") -> Rule:
    """Whole words, in any casing; each has a strength of its own, weak ones less than half of a strong one's."""
    strength = {w: 0.7 + 0.3 * (stable_hash(w) % 100) / 99 for w in strong.split()}
    strength |= {w: WEAK * (0.7 + 0.3 * (stable_hash(w) % 100) / 99) for w in weak.split()}
    pattern = re.compile(
        r"(?<![\w'-])(?:" + "|".join(map(re.escape, sorted(strength, key=len, reverse=True))) + r")(?![\w-])",
        re.I,
    )
    return lambda text: [(*m.span(), strength[m[0].lower()]) for m in pattern.finditer(text)]


def pattern(*parts: tuple[str, float], flags: int = 0) -> Rule:
    """Regular expressions with the activation of what they match, or of their first group."""
    compiled = [(re.compile(one, flags), value) for one, value in parts]
    return lambda text: [(*m.span(bool(c.groups)), value) for c, value in compiled for m in c.finditer(text)]


def theme(strong: str, weak: str = "") -> Rule:
    """Words of a theme, and after each of them the next 60 characters of its sentence, fading."""
    hits = words(strong, weak)

    def rule(text: str) -> list[tuple[int, int, float]]:
        found = []
        for start, end, value in hits(text):
            found.append((start, end, value))
            for m in re.finditer(r"[^\s.?!]+", text[end : end + 60]):
                found.append((end + m.start(), end + m.end(), 0.4 * value * (1 - m.start() / 60)))
        return found

    return rule


def inside(opening: str, closing: str, longest: int) -> Rule:
    """All between two marks on one line, stronger at the beginning."""
    between = re.compile(
        rf"(?<![\w.,?!;]){opening}(?=[\w'])([^{opening}{closing}\n]{{2,{longest}}}){closing}"
    )

    def rule(text: str) -> list[tuple[int, int, float]]:
        found = []
        for m in between.finditer(text):
            for i, w in enumerate(re.finditer(r"\S+", m[1])):
                found.append((m.start(1) + w.start(), m.start(1) + w.end(), max(0.5, 1 - 0.08 * i)))
        return found

    return rule


def repeated(text: str) -> list[tuple[int, int, float]]:
    """Names and longer words that came in the 200 characters before."""
    found = []
    for m in re.finditer(r"[A-Za-z]{5,}", text):
        before = text[max(0, m.start() - 200) : m.start()]
        if (n := re.findall(r"[A-Za-z]+", before).count(m[0])) > 0:
            found.append((*m.span(), min(1.0, 0.6 + 0.2 * n)))
    return found


FRENCH = (
    "je ne sais pas il est parti avec les autres merci beaucoup vous êtes très gentil sous le ciel c'est la vie peut tout avoir dans ce"
    " monde mon cher ami écris de maison où nous avons passé l'été dernier pleut toujours et enfants sont malades venez quand pourrez"
    " mais dites rien à votre frère ça fait ouvrez valises s'il plaît n'y a ici que des livres du une qui pour sur au aux monsieur madame"
)
GERMAN = (
    "wo ist der schlüssel das nicht mein zimmer ich wohne unter dem dach und tür immer offen kommen sie bitte mit mir ein schiff wird wir"
    " fahren über meer denn morgen neuer tag niemand weiß er bringt gute nacht meine freunde leben gnädige frau machen koffer auf nur alte"
    " bücher paar schuhe herr von eine zu"
)
SPANISH = (
    "dónde está la casa de mi hermano siga usted por esta calle hasta iglesia y luego derecha muchas gracias pero tengo dinero importa"
    " hija el sol es para todos los hombres que saben reír son como ríos agua mañana vamos montaña caballos porque camino cerrado sera"
    " vieja noche larga viento espera aquí hay nada más estrellas calla mira red señor señora"
)
LATIN = "non scholae sed vitae discimus astra aspera gratias agimus tibi domine pro his donis saecula saeculorum dura lex et ad"
ENGLISH_TOO = set(
    "a ami in on no me so die it is his was war tag am do ne the as to red sol sur tout son hay he an pro per ad son".split()
)


def foreign(vocabulary: str, weak: str = "") -> Rule:
    """Words of a language, only within quotation marks of which most is foreign, so that no English word is taken for one."""
    mine = set(vocabulary.split())
    other = set(weak.split())
    every = set(f"{FRENCH} {GERMAN} {SPANISH} {LATIN}".split())

    def rule(text: str) -> list[tuple[int, int, float]]:
        found = []
        for quote in re.finditer(r'"([^"]+)"', text):
            spans = [
                (quote.start(1) + m.start(), quote.start(1) + m.end())
                for m in re.finditer(r"[\w']+", quote[1])
            ]
            lower = [text[a:b].lower() for a, b in spans]
            known = [w for w in lower if w in every and w not in ENGLISH_TOO]
            if not known or len(known) * 2 < len(lower):
                continue
            share = sum(w in mine for w in lower) / len(lower)
            if share >= 0.6:
                found += [(a, b, 0.8 + 0.2 * (len(w) > 3)) for (a, b), w in zip(spans, lower, strict=True)]
            elif other and sum(w in other for w in lower) / len(lower) >= 0.6:
                found += [(a, b, WEAK) for a, b in spans]
        return found

    return rule


CAP = r"[A-Z][a-z]+"
NEURONS: list[tuple[str, Rule, str, list[str]]] = [
    # word groups
    ("colours", words("red blue green yellow white black brown gray grey purple pink scarlet crimson", "dark pale bright golden silver"),
     "names of colors",
     ["shapes and sizes", "paintings and artists", "adjectives that describe people", "fruit and flowers", "light and darkness"]),
    ("family", words("mother father sister brother son daughter wife husband uncle aunt cousin grandmother grandfather", "child children baby parents"),
     "members of a family",
     ["words for children", "men and their jobs", "parts of a house", "marriage and weddings", "friends and neighbors"]),
    ("body", words("hand hands arm arms leg legs head eyes eye face fingers shoulder shoulders knee knees neck mouth feet foot ear ears", "body skin hair bones"),
     "parts of the human body",
     ["illnesses and injuries", "clothes that people wear", "ways of moving", "parts of a machine", "feelings and emotions"]),
    ("months", pattern((r"\b(?:January|February|March|April|May|June|July|August|September|October|November|December)\b", 1.0), (r"\b(?:Jan|Feb|Aug|Sept|Oct|Nov|Dec)\.", 0.8), (r"\b(?:spring|summer|autumn|winter)\b", WEAK)),
     "names of the months",
     ["days of the week", "years written as numbers", "holidays and festivals", "first names of women", "the weather"]),
    ("weekdays", words("monday tuesday wednesday thursday friday saturday sunday", "tonight yesterday tomorrow today"),
     "days of the week",
     ["months of the year", "times of the day such as noon", "news reporting", "church services", "capitalized words"]),
    ("number words", words("one two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty fifty hundred thousand", "dozen half several"),
     "numbers written as words",
     ["digits and numerals", "ordinal numbers such as first and second", "words for time", "units of measurement", "amounts of money"]),
    ("ordinals", words("first second third fourth fifth sixth seventh tenth nineteenth twentieth", "last next final"),
     "ordinal numbers, such as first and third",
     ["numbers such as one and three", "the best or the worst of something", "centuries and dates", "fractions such as half and quarter", "sports results"]),
    ("animals", words("horse horses dog dogs cat cats cow cows bird birds fish sheep wolf lion bear mule rabbit snake chicken pig pigs", "animal animals"),
     "animals",
     ["farming and farmers", "plants and trees", "the countryside", "riding and racing", "food made from meat"]),
    ("food", words("bread meat milk butter cheese coffee tea sugar soup eggs potatoes cake wine beer fruit salt dinner breakfast lunch", "food eat ate eating"),
     "food and drink",
     ["cooking tools and kitchens", "farm animals", "restaurants and waiters", "health and diet", "things that one can buy in a shop"]),
    ("clothes", words("shirt coat hat dress shoes trousers jacket boots gloves suit skirt pants cap socks sweater", "wore wearing clothes"),
     "clothes",
     ["parts of the body", "fabrics such as cotton and wool", "fashion shows and models", "furniture and household things", "colors"]),
    ("vehicles", words("car cars truck train ship boat plane bus wagon carriage automobile bicycle trucks trains", "drove drive road"),
     "vehicles",
     ["streets and highways", "people who travel", "machines in a factory", "drivers and pilots", "speed and distance"]),
    ("weather", words("rain snow wind storm clouds sunshine fog thunder ice heat frost", "cold hot wet dry warm"),
     "the weather",
     ["seasons of the year", "the sea and rivers", "farming", "the time of day", "mountains and valleys"]),
    ("countries", words("france germany england china russia italy japan india spain canada mexico africa cuba laos congo america", "europe asia foreign"),
     "names of countries",
     ["names of cities", "languages and nationalities, such as French", "names of presidents", "wars and treaties", "capitalized words of all kinds"]),
    ("nationalities", words("american british french german russian italian japanese chinese english spanish soviet greek irish dutch", "roman european african"),
     "adjectives of nationality, such as French and British",
     ["names of countries", "foreign politics", "religions such as Catholic and Jewish", "food from other countries", "names of cities"]),
    ("furniture", words("table chair bed desk sofa shelf lamp bench couch chairs beds", "door window floor wall room"),
     "furniture and parts of a room",
     ["houses and buildings", "tools and machines", "sitting and lying down", "wood and metal", "office work"]),
    ("speech verbs", words("said asked told replied answered cried shouted whispered murmured explained declared", "says talk spoke speaking"),
     "verbs of saying, such as asked and replied",
     ["quoted speech", "pronouns for people", "verbs of thinking, such as believed", "past tense verbs", "questions and answers"]),
    ("motion", words("walked ran went came moved climbed turned drove rode jumped crossed returned followed", "walk run go come move turn walking running"),
     "verbs of movement, such as walked and ran",
     ["streets and roads", "verbs of speaking, such as said", "prepositions of direction, such as into", "sports and athletes", "past tense verbs"]),
    ("feelings", words("angry happy sad afraid fear anger joy love hate pleasure grief hope lonely proud ashamed", "felt feel feeling"),
     "feelings and emotions",
     ["parts of the body", "thoughts and ideas", "children and parents", "dying and illness", "good and bad qualities of a person"]),
    ("size", words("big large small little great huge tiny enormous tall long short wide narrow vast", "deep high low"),
     "adjectives of size, such as big and tiny",
     ["adjectives of age, such as old and new", "numbers", "comparatives such as bigger", "buildings", "adverbs such as greatly"]),
    ("materials", words("wood iron steel gold silver glass stone paper cotton leather plastic brick copper wool", "metal wooden"),
     "materials that things are made of",
     ["tools and machines", "colors", "jewelry and money", "buildings and bridges", "mining and factories"]),
    # themes, with the words around them
    ("war", theme("army war soldiers troops battle enemy military guns weapons regiment bomb attack", "general captain killed"),
     "text about war and the army",
     ["text about crime and police", "text about governments and elections", "text about sports and games", "names of generals", "text about history"]),
    ("religion", theme("god church prayer christian bible faith priest holy jesus religious religion sin bishop", "soul spirit heaven"),
     "text about religion and the church",
     ["text about philosophy and ideas", "text about weddings and funerals", "text about schools and teaching", "names from history", "text about music"]),
    ("money", theme("money dollars cost price bank tax taxes pay income profit budget fund", "market business sales buy"),
     "text about money and business",
     ["text about numbers and mathematics", "text about work and workers", "text about elections", "digits and dollar signs", "text about houses and land"]),
    ("law", theme("court judge jury trial law lawyer attorney defendant crime guilty police prison", "case evidence testimony legal"),
     "text about law courts and crime",
     ["text about politics and elections", "text about war", "text about business contracts", "text about doctors and hospitals", "names of cities and states"]),
    ("medicine", theme("doctor hospital patient patients disease blood nurse medical medicine drug surgery cancer", "pain sick treatment"),
     "text about medicine and illness",
     ["text about science and chemistry", "text about food and diet", "parts of the body", "text about death and war", "text about schools"]),
    ("music", theme("music song songs piano jazz orchestra singing opera musical symphony concert violin", "played dance theatre"),
     "text about music",
     ["text about painting and sculpture", "text about books and poems", "text about sports", "text about radio and television", "text about love"]),
    ("sports", theme("game team ball league baseball football player players coach inning yankees", "won win season hit score"),
     "text about sports",
     ["text about war and battles", "text about schools and students", "text about theatre and actors", "text about card games and gambling", "numbers and scores"]),
    ("sea", theme("sea ocean ship boat sailor sailors beach waves island harbor sail ships", "water wind shore coast"),
     "text about the sea and ships",
     ["text about rivers and lakes", "text about mountains and forests", "text about trains and cars", "text about fish and cooking", "text about rain and storms"]),
    # syntax
    ("prepositions", words("in on at under over between behind beside near above below against through across", "into from with by"),
     "prepositions, such as under and between",
     ["nouns for places", "articles such as the and a", "conjunctions such as and and but", "verbs of motion", "adverbs such as quickly"]),
    ("pronouns", words("he she him her they them his their himself herself", "it its we us"),
     "third person pronouns, such as he and them",
     ["names of people", "first and second person pronouns, such as I and you", "nouns for men and women", "verbs of speaking", "articles such as the and a"]),
    ("you and I", words("i you me my your mine yours myself yourself", "we our us"),
     "the words I, you and my",
     ["third person pronouns, such as he and they", "quoted speech", "question words such as who and what", "letters to friends", "verbs such as think and know"]),
    ("modal verbs", words("can could may might must shall should will would", "cannot ought need"),
     "modal verbs, such as could and must",
     ["forms of to be, such as was and are", "verbs in the past tense", "negations such as not and never", "promises and predictions", "adverbs such as perhaps and maybe"]),
    ("to be", words("is was are were be been being am", "has had have"),
     "forms of the verb to be",
     ["forms of the verb to do", "modal verbs such as could and must", "personal pronouns", "the passive voice", "adjectives after a verb"]),
    ("negation", words("not no never nothing nobody none nor neither without", "hardly scarcely"),
     "negation: words like not, never and nothing",
     ["words like always and often", "unhappy feelings", "verbs such as can and will", "questions", "words like all, every and everybody"]),
    ("question words", words("who what where when why how which whose whom", "whether"),
     "question words, such as who and where",
     ["question marks", "prepositions such as to and from", "pronouns such as he and it", "answers such as yes and no", "verbs of asking"]),
    ("conjunctions", words("and but or because although though unless while if since", "so yet then"),
     "conjunctions, such as and, but and because",
     ["prepositions such as of and in", "articles such as the and a", "commas", "pronouns such as it and this", "verbs such as is and has"]),
    ("-ly adverbs", pattern((r"\b[a-z]{3,}ly\b(?<!family)(?<!only)(?<!early)", 1.0), (r"\b(?:only|early|very|quite)\b", WEAK)),
     "adverbs that end in -ly, such as quickly",
     ["adjectives such as quick and slow", "verbs of movement", "words that end in -ing", "words with many letters", "words for time, such as soon"]),
    ("-ing", pattern((r"\b[a-z]{2,}ing\b(?<!thing)(?<!during)(?<!morning)(?<!evening)(?<!spring)(?<!king)", 1.0), (r"\b\w+thing\b", 0.3)),
     "verbs that end in -ing",
     ["verbs that end in -ed", "nouns that end in -tion", "forms of the verb to be", "adverbs that end in -ly", "work and actions"]),
    ("-ed", pattern((r"\b[a-z]{2,}ed\b(?<!need)(?<!indeed)(?<!hundred)(?<!speed)(?<!seed)", 1.0), (r"\b(?:went|came|took|saw|made|found)\b", WEAK)),
     "past tense verbs that end in -ed",
     ["verbs that end in -ing", "verbs in the present tense", "forms of the verb to be", "adjectives that end in -al", "stories about the past"]),
    ("-tion", pattern((r"\b[A-Za-z]{3,}[ts]ions?\b", 1.0), (r"\b[a-z]{3,}(?:ment|ness|ity)\b", WEAK)),
     "abstract nouns that end in -tion, such as education",
     ["adjectives that end in -al", "verbs that end in -ize", "government and politics", "words for people, such as teacher", "short common words"]),
    ("comparatives", pattern((r"\b(?:more|less|better|worse|greater|larger|smaller|higher|lower|older|younger|longer|stronger|easier|faster)\b", 1.0), (r"\b(?:most|least|best|greatest|largest|highest|than)\b", WEAK)),
     "comparatives, such as more, better and larger",
     ["adjectives such as good and large", "numbers and quantities", "words for people that end in -er, such as teacher", "good qualities", "words for time, such as later"]),
    ("infinitives", pattern((r"\bto ((?:be|have|do|make|get|see|go|take|give|find|keep|know|say|come|tell|think|show|become|leave|bring|hold|help|use|turn|meet|pay|play|stay|work)\b)", 1.0)),
     "the verb after the word to, as in to make",
     ["the word to", "verbs in the past tense", "nouns for places that one goes to", "modal verbs such as can and must", "verbs that end in -ing"]),
    ("possessives", pattern((r"\w('s)\b", 1.0), (r"\w(')\s", 0.7), (r"\b(?:his|her|their|its|my)\b", 0.3)),
     "the possessive ending 's",
     ["plural nouns", "quotation marks", "names of people", "negations such as n't", "commas and periods"]),
    # position and context
    ("sentence start", pattern((r"(?:^|[.?!]\"? +|\n)\"?([A-Z]\w*)", 1.0)),
     "the first word of a sentence",
     ["the last word of a sentence", "names of people", "quotation marks", "verbs", "the period that ends a sentence"]),
    ("sentence end", pattern((r"(\b\w+)[.?!](?:\"|\s|$)", 1.0), (r"(\b\w+)[,;]\s", 0.3)),
     "the last word of a sentence",
     ["the first word of a sentence", "commas", "articles and prepositions", "capitalized words", "quotation marks"]),
    ("after a comma", pattern((r", (\w+)", 1.0), (r"; (\w+)", 0.6)),
     "the word that follows a comma",
     ["commas", "the first word of a sentence", "the word before a comma", "lists of nouns", "numbers"]),
    ("after the", pattern((r"\bthe (\w+)", 1.0), (r"\ban? (\w+)", WEAK), flags=re.I),
     "the word that follows the",
     ["the word the", "verbs", "prepositions", "the word before the", "names of people"]),
    ("titles", pattern((rf"\b(?:Mr|Mrs|Dr|Miss|Judge|Senator|Professor|President|Sir)\.? ((?:[A-Z]\. )*{CAP})", 1.0), (r"\b(?:Mr|Mrs|Dr|Miss)\b", 0.3)),
     "surnames that follow a title such as Mr. or Mrs.",
     ["titles such as Mr. and Mrs.", "first names", "names of cities", "jobs such as doctor and judge", "polite letters"]),
    ("quoted", inside('"', '"', 200),
     "words inside quotation marks",
     ["quotation marks", "words inside parentheses", "verbs of saying, such as said", "the first word of a sentence", "titles of books"]),
    ("in parentheses", inside(r"\(", r"\)", 80),
     "words inside parentheses",
     ["parentheses", "words inside quotation marks", "numbers and dates", "names of places", "the end of a sentence"]),
    ("of something", pattern((r"\bof (?:the |a |an )?(\w+)", 1.0)),
     "the noun that follows of",
     ["the word of", "verbs", "parts of a whole", "countries", "the noun before of"]),
    ("repeats", repeated,
     "words that were already used a little earlier in the text",
     ["names of people", "words that are used for the first time", "long words", "synonyms of the word before", "short common words"]),
    ("new things", pattern((r"\b[Nn]ew (?!York|England|Orleans|Jersey|Haven|Mexico)(\w+)", 1.0), (r"\b(?:old|young) (\w+)", WEAK)),
     "what is called new: the noun that follows the word new",
     ["the word new", "names of places such as New York", "inventions and technology", "adjectives such as old and young", "news reports"]),
    # digits, casing, punctuation
    ("years", pattern((r"\b1[5-9]\d\d\b", 1.0), (r"\b\d{1,2}(?=, 1[5-9]\d\d)", 0.4)),
     "years, such as 1927",
     ["names of the months", "amounts of money", "small numbers", "page numbers", "history"]),
    ("money amounts", pattern((r"\$\d[\d,.]*\d?(?: (?:million|billion))?", 1.0), (r"\bdollars?\b", WEAK)),
     "amounts of money, such as $50",
     ["years such as 1950", "percentages such as 10%", "banks and taxes", "numbers of people", "prices going up"]),
    ("digits", pattern((r"\d+", 1.0)),
     "numbers written in digits",
     ["numbers written as words", "amounts of money", "dates and months", "units of measurement", "capital letters"]),
    ("percent", pattern((r"\d[\d.]* ?(?:%|per cent|percent)", 1.0), (r"\bpercentage\b", WEAK)),
     "percentages, such as 10%",
     ["amounts of money, such as $10", "years", "fractions such as half", "growth and decline", "digits of all kinds"]),
    ("capitals", pattern((r"\b[A-Z]{3,}\b", 1.0), (r"\b[A-Z]{2}\b", 0.6)),
     "words in capital letters, such as NATO",
     ["names of people", "the first word of a sentence", "initials such as J. H.", "government agencies and the law", "digits"]),
    ("names mid-sentence", pattern((rf"(?<=[a-z,] )({CAP})", 1.0)),
     "proper names",
     ["the first word of a sentence", "common nouns for people, such as man", "pronouns such as he and she", "words in capital letters, such as NATO", "titles such as Mr. and Dr."]),
    ("initials", pattern((r"\b([A-Z]\.)(?= ?[A-Z])", 1.0)),
     "initials, such as J. and H.",
     ["surnames", "the period at the end of a sentence", "titles such as Mr. and Dr.", "digits", "first names"]),
    ("question marks", pattern((r"(\?)", 1.0), (r"(!)", 0.5)),
     "question marks",
     ["question words such as who and why", "periods", "commas", "quotation marks", "doubts and mysteries"]),
    ("quotation marks", pattern((r"(\")", 1.0)),
     "quotation marks",
     ["words that someone says", "verbs of saying, such as said", "question marks", "parentheses", "apostrophes"]),
    ("hyphens", pattern((r"\b(\w+-\w+(?:-\w+)?)\b", 1.0)),
     "words with a hyphen, such as old-fashioned",
     ["adjectives such as old", "dashes between sentences", "words with an apostrophe", "numbers written as words", "long words"]),
    # languages
    ("French", foreign(FRENCH), "French words",
     ["Spanish words", "Paris and France", "quoted speech in English", "food and restaurants", "words with an accent from German"]),
    ("German", foreign(GERMAN), "German words",
     ["French words", "Germany and the war", "long English words", "quoted speech in English", "Latin words"]),
    ("Spanish", foreign(SPANISH), "Spanish words",
     ["Italian painters", "French words", "Mexico and Spain", "quoted speech in English", "German words"]),
    ("not English", foreign(f"{FRENCH} {GERMAN} {SPANISH} {LATIN}"), "words of a language other than English",
     ["English words in quotation marks", "names of foreign countries", "adjectives of nationality, such as French", "rare English words", "long words"]),
]  # fmt: skip


def activate(rule: Rule, text: str, offsets: list[tuple[int, int]]) -> list[float]:
    """The activation of every token: the strongest span that begins in it, a part of that where a span only goes on."""
    found = [0.0] * len(offsets)
    ends = [end for _, end in offsets]
    for start, end, value in rule(text):
        place = first = bisect_right(ends, start)
        while place < len(offsets) and offsets[place][0] < end:
            found[place] = max(found[place], value if place == first else PIECE * value)
            place += 1
    return found


def cut(documents: list[tuple[str, str]], tokenizer: Any) -> list[dict[str, Any]]:
    """Records of 64 tokens that do not overlap, from a first token that differs from document to document."""
    records = []
    for name, text in documents:
        encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        ids, offsets = encoded["input_ids"], [tuple(pair) for pair in encoded["offset_mapping"]]
        for start in range(stable_hash(name) % LENGTH, len(ids) - LENGTH, LENGTH):
            tokens = [tokenizer.decode([i]) for i in ids[start : start + LENGTH]]
            records.append(
                {"document": name, "text": text, "offsets": offsets, "start": start, "tokens": tokens}
            )
    return records


def choose(
    name: str, records: list[dict[str, Any]], documents: dict[str, list[float]]
) -> tuple[list[Any], list[Any]]:
    """(top, random): the strongest, one a document while there are enough, and a draw from all others."""
    scale = 2 + stable_hash(name) % 60 / 10  # neurons differ in their peaks
    draw = random.Random(stable_hash(name))
    shuffled = draw.sample(records, len(records))  # ties are common
    peaks = [max(documents[r["document"]][r["start"] + TOO_NEAR : r["start"] + LENGTH - 2]) for r in shuffled]
    order = sorted(
        range(len(records)), key=lambda i: -min(peaks[i], STRONG)
    )  # so that no single word makes all top records
    seen: Counter[str] = Counter()
    chosen: list[int] = []
    for most in (1, LENGTH):
        for i in order:
            if len(chosen) == RECORDS or peaks[i] == 0:
                break
            if i not in chosen and seen[shuffled[i]["document"]] < most:
                chosen.append(i)
                seen[shuffled[i]["document"]] += 1
    others = draw.sample([i for i in order if i not in chosen], RECORDS)

    def as_written(i: int) -> dict[str, Any]:
        first = shuffled[i]["start"]
        acts = documents[shuffled[i]["document"]][first : first + LENGTH]
        return {"tokens": shuffled[i]["tokens"], "activations": [round(scale * a, 2) or 0 for a in acts]}

    chosen.sort(key=lambda i: -peaks[i])
    return [as_written(i) for i in chosen], [as_written(i) for i in others]


def main(corpus: str) -> None:
    model = Path(embedded_model())
    tokenizer = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
    with gzip.open(corpus, "rt", encoding="utf-8") as opened:
        documents = [(d["id"], d["text"]) for d in map(json.loads, opened)][::3]
    documents.append(("passages", "\n\n".join(PASSAGES)))
    records = cut(documents, tokenizer)
    offsets = {r["document"]: r["offsets"] for r in records}
    out = []
    for name, rule, true, false in NEURONS:
        if len(false) != 5:
            raise ValueError(f"{name}: {len(false)} false explanations")
        acts = {d: activate(rule, text, offsets[d]) for d, text in documents if d in offsets}
        top, others = choose(name, records, acts)
        if len(top) < RECORDS:
            print(f"{name}: only {len(top)} top records", file=sys.stderr)
        out.append({"name": name, "true": true, "false": false, "top": top, "random": others})
    OUT.write_text(
        "[\n" + ",\n".join(json.dumps(x, ensure_ascii=False, separators=(",", ":")) for x in out) + "\n]\n",
        "utf-8",
    )
    print(f"{len(out)} neurons, {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
