"""Where requests go among several servers: equal prefixes together, evenly, and past a busy server."""

from collections import Counter

import pytest

from neuroexplain.llm.engine import Message
from neuroexplain.llm.routing import CACHE_BLOCK, Conversations, choose_server, prefix_key

URLS = [f"http://gpu-{n}:8000/v1" for n in range(8)]
PREFIXES = [prefix_key(range(n, n + 40)) for n in range(2000)]


def test_a_prefix_goes_to_the_same_server_and_prefixes_spread_evenly():
    idle = dict.fromkeys(URLS, 0)
    places = [choose_server(prefix, idle) for prefix in PREFIXES]
    assert places == [choose_server(prefix, dict(reversed(idle.items()))) for prefix in PREFIXES]
    shares = Counter(places)
    assert set(shares) == set(URLS)
    assert all(180 < n < 320 for n in shares.values())  # 250 expected, standard deviation 15


def test_a_server_that_leaves_moves_only_its_own_prefixes():
    idle = dict.fromkeys(URLS, 0)
    rest = {url: 0 for url in URLS if url != URLS[3]}
    for prefix in PREFIXES[:300]:
        before, after = choose_server(prefix, idle), choose_server(prefix, rest)
        assert after == before or before == URLS[3]


@pytest.mark.parametrize(("least", "most"), [(0, 2), (8, 12), (40, 52)])
def test_a_prefix_stays_until_its_server_is_clearly_busier(least, most):
    preferred = choose_server(PREFIXES[0], dict.fromkeys(URLS, 0))
    idle = next(url for url in URLS if url != preferred)
    others = dict.fromkeys(URLS, most + 10) | {idle: least}
    assert choose_server(PREFIXES[0], others | {preferred: most}) == preferred
    assert choose_server(PREFIXES[0], others | {preferred: most + 1}) == idle


def test_without_a_prefix_the_least_busy_server_is_taken():
    busy = {url: n for n, url in enumerate(reversed(URLS))}
    assert choose_server(b"", busy) == URLS[-1]


def test_a_prefix_is_cut_to_whole_blocks_of_the_cache():
    ids = list(range(100))
    whole = 6 * CACHE_BLOCK
    assert prefix_key(ids) == prefix_key(ids[:whole]) == prefix_key([*ids[:whole], 7])
    assert prefix_key(ids) != prefix_key([*ids[: whole - 1], 7, 7])
    assert prefix_key(ids[:3]) != prefix_key(ids[:4])
    assert prefix_key([]) == b""


def test_a_chat_that_goes_on_belongs_to_its_beginning():
    conversations = Conversations()
    worked = [Message("system", "explain"), Message("user", "records of a"), Message("assistant", "geese")]
    first, other = [*worked, Message("user", "records of b")], [*worked, Message("user", "records of c")]
    key = conversations.key(first)
    assert conversations.key(other) != key
    more = [*first, Message("assistant", "mills"), Message("user", "mistakes")]
    assert conversations.key(more) == conversations.key(first) == key
    assert conversations.key([*more, Message("assistant", "x"), Message("user", "y")]) == key
