"""A real vLLM serving SmolLM2. `make test-vllm` sets it up; without it `make test` leaves these tests out.

SmolLM2's tokenizer adds no BOS, so all of this is also without one.
"""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from neuroexplain.errors import EngineError, LlmReplyError
from neuroexplain.evidence import VocabularyEntry
from neuroexplain.explaining.replies import parse_single
from neuroexplain.llm.distributions import (
    NEUTRAL_SAMPLING,
    LogprobRequest,
    LogprobTokenIds,
    NextLogprobs,
    PromptLogprobs,
    PromptLogprobTokenIds,
)
from neuroexplain.llm.engine import Message
from neuroexplain.llm.local import LocalEngine
from neuroexplain.llm.server import ServerEngine
from neuroexplain.llm.transport import Refused
from neuroexplain.llm.vllm import serve_vllm
from neuroexplain.scorers._questions import find_answer_ids
from neuroexplain.scorers.combined import CombinedSimulator
from neuroexplain.scorers.detection import SCORER as DETECTION
from neuroexplain.scorers.digits import DigitsSimulator
from neuroexplain.scorers.fuzzing import SCORER as FUZZING
from neuroexplain.scorers.intruder import SCORER as INTRUDER
from neuroexplain.scorers.lexical import LexicalSimulator
from neuroexplain.scorers.words import WordsSimulator
from neuroexplain.scoring.intruders import IntruderRound
from neuroexplain.scoring.windows import MarkedWindow
from tests.fakes import tiny_subject, words
from tests.proxy import FAULTS, PASSING, Proxy
from tests.tokens import HOSTILE

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]

ENVIRONMENT = Path(__file__).parent.parent.parent / ".venv-vllm"
COMMAND = f"{ENVIRONMENT}/bin/python -m vllm.entrypoints.openai.api_server"
MODEL = str(ENVIRONMENT / "smollm2")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Eager mode starts in half the time; small blocks of the prefix cache make cut prompts worth it.
ARGUMENTS = ("--dtype", "float32", "--max-model-len", "4096", "--enforce-eager", "--block-size", "32")
SERVED = (*ARGUMENTS, "--enable-scale-out")
ASKED = [Message("user", "Name the capital of France in one word.")]
VOCABULARY = {
    i: VocabularyEntry(i, text, False) for i, text in enumerate([" she", " bought", " two", *HOSTILE])
}


SAMPLED_RUN = SimpleNamespace(id=1, n_sampled=40)  # what a judge asks of a run


class Served:
    """vLLM on a port of its own, which can be killed and started again."""

    def __init__(self):
        with socket.socket() as opened:
            opened.bind(("127.0.0.1", 0))
            self.port = opened.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()
        self.wait()

    def start(self):
        typed = [*COMMAND.split(), "--model", MODEL, "--host", "127.0.0.1", "--port", str(self.port), *SERVED]
        self.process = subprocess.Popen(
            typed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def wait(self):
        while self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health").is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.5)
        raise AssertionError(f"vLLM ended with status {self.process.returncode}")

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def served():
    server = Served()
    yield server
    if server.process.poll() is None:
        server.kill()


@pytest.fixture(scope="module")
def url(served):
    return served.url


@pytest.fixture(scope="module")
def local():
    return LocalEngine(MODEL, dtype="float32")


def test_the_server_answers_as_the_local_engine_does(url, local):
    server = ServerEngine(url)
    assert server.generate(ASKED, max_tokens=8, temperature=0.0, seed=0).text == (
        local.generate(ASKED, max_tokens=8, temperature=0.0, seed=0).text
    )


def test_exact_methods_give_the_local_engine_s_distributions_on_hostile_tokens(url, local):
    server = ServerEngine(url)
    digits = DigitsSimulator(local)
    ids, rows = digits.build_prompt("buying and selling", range(len(VOCABULARY)), VOCABULARY)
    true = local.level_distributions(ids, rows, digits.level_token_ids)
    assert server.find_method(LogprobRequest(ids, rows, digits.level_token_ids)).name == "logprob_token_ids"
    assert server.version.endswith(", logprob_token_ids")
    levels = server.level_distributions(ids, rows, digits.level_token_ids)
    np.testing.assert_allclose(levels, true, atol=0.005)
    assert server.usage.prompt_tokens > sum(rows)


def test_the_most_likely_tokens_are_the_exact_ones_but_for_the_cut(url, local):
    server = ServerEngine(url)
    server._method = PromptLogprobs(20)
    digits = DigitsSimulator(local)
    ids, rows = digits.build_prompt("buying and selling", range(len(VOCABULARY)), VOCABULARY)
    true = local.level_distributions(ids, rows, digits.level_token_ids)
    levels = server.level_distributions(ids, rows, digits.level_token_ids)
    seen = levels > 0
    assert seen.any()
    assert ((levels < true + 0.005) & (seen | (true < 0.05))).all()
    # Of two spellings one may be cut.
    single = np.array([len(spelled) == 1 for spelled in digits.level_token_ids])
    np.testing.assert_allclose(levels[seen & single], true[seen & single], atol=0.005)


QUESTION_WORDS = [" she", " bought", " two", " 10", "house", "\u2019", "<|im_end|>", "Monday"]


@pytest.mark.parametrize("method", [LogprobTokenIds(), NextLogprobs(20)], ids=lambda method: method.name)
def test_questions_about_words_get_the_local_engine_s_answers(url, local, method):
    server = ServerEngine(url)
    questions = WordsSimulator(local)._questions
    if isinstance(method, LogprobTokenIds):
        assert server.find_method(questions.example()).name == "logprob_token_ids"
    else:
        server._next_method = method
    prompts = questions.build_prompts("days of the week", [word.strip() for word in QUESTION_WORDS])
    ids = find_answer_ids(local.tokenizer)
    true, answers = (engine.next_distributions(prompts, ids) for engine in (local, server))
    cut = 0.0 if isinstance(method, LogprobTokenIds) else 0.03  # of spellings that are not among the 20
    assert (np.abs(answers - true + cut / 2) < 0.005 + cut / 2).all()
    assert server.version.endswith(f", {method.name}")


@pytest.mark.parametrize("judge", [DETECTION, FUZZING, INTRUDER])
def test_judges_by_the_server_are_those_of_the_local_engine(url, local, judge):
    """Within the noise of a server that computes in float32, in other batches; every window is answered."""
    vocabulary = {i: VocabularyEntry(i, text, False) for i, text in enumerate([*QUESTION_WORDS, *HOSTILE])}
    ids = list(vocabulary)
    windows = [
        MarkedWindow("random", n, "report", 0, tuple([*ids[n:], *ids[:n]][:32]), (n % 8, 9))
        for n in range(12)
    ]
    rounds = [
        IntruderRound(w.kind, w.rank, w.split, w.first, w.token_ids, tuple(windows[:4]), w, w.rank % 5)
        for w in windows[4:]
    ]
    trials = rounds if judge is INTRUDER else windows
    server = ServerEngine(url)
    server_judge, local_judge = (judge.open(engine, SAMPLED_RUN) for engine in (server, local))
    assert server.find_method(server_judge.example()).name == "logprob_token_ids"
    for explanation in ("days of the week", "buying and selling"):
        remote, own = (j.run(explanation, trials, vocabulary).trials for j in (server_judge, local_judge))
        for a, b in zip(remote, own, strict=True):
            np.testing.assert_allclose(a.values, b.values, atol=0.01)


@pytest.mark.parametrize("kind", [LexicalSimulator, CombinedSimulator])
def test_lexical_and_combined_by_the_server_are_those_of_the_local_engine(url, local, kind):
    """Within the noise of a server that computes in float32, in other batches."""
    vocabulary = {i: VocabularyEntry(i, text, False) for i, text in enumerate([*QUESTION_WORDS, *HOSTILE])}
    records = [list(vocabulary)]
    server = ServerEngine(url)
    for explanation in ("days of the week", "buying and selling"):
        (remote,), (own,) = (
            kind(engine, "other").simulate(explanation, records, vocabulary).trials
            for engine in (server, local)
        )
        assert own.values.max() > 1
        np.testing.assert_allclose(np.sqrt(remote.values), np.sqrt(own.values), atol=0.05)


def test_scored_rows_are_refused_without_a_gpu(url):
    server = ServerEngine(url)
    server._method = PromptLogprobTokenIds()
    with pytest.raises(Refused, match="V2 model runner"):
        server.level_distributions([1, 2, 3], [0], [[5]])


def test_sampling_options_do_not_reach_the_log_probabilities(url):
    """The server may give true log-probabilities or processed ones: our options leave both the same."""
    ids, chosen = list(range(100, 140)), [47, 198, 260]

    def ask(**options):
        body = {
            "model": MODEL,
            "prompt": ids,
            "max_tokens": 1,
            "logprobs": 1,
            "logprob_token_ids": chosen,
            **options,
        }
        answer = httpx.post(
            f"{url}/v1/completions", json={**body, "return_tokens_as_token_ids": True}, timeout=60
        ).json()
        top = answer["choices"][0]["logprobs"]["top_logprobs"][0]
        return [top[f"token_id:{i}"] for i in chosen]

    neutral = ask(**NEUTRAL_SAMPLING)
    np.testing.assert_allclose(ask(temperature=0.0), neutral, atol=1e-3)
    np.testing.assert_allclose(ask(temperature=2.0, top_k=1), neutral, atol=1e-3)


def test_a_wrong_name_lists_what_is_served(url):
    with pytest.raises(EngineError, match=r"it serves .*smollm2"):
        ServerEngine(url, "gpt-4")


def test_what_does_not_fit_is_refused_by_the_server_too(url):
    server = ServerEngine(url)
    server.context_length = None
    with pytest.raises(LlmReplyError) as failed:
        server.generate([Message("user", "river " * 5000)], max_tokens=5, temperature=0.0, seed=0)
    assert failed.value.status == "context_too_long"


@pytest.mark.parametrize("method", [LogprobTokenIds(), PromptLogprobs(20)], ids=lambda method: method.name)
def test_no_fault_becomes_a_value(url, method, monkeypatch):
    """Each fault once on a text and once on a distribution.

    After it there is the same answer, or a failed attempt with its reply.
    """
    monkeypatch.setattr("neuroexplain.llm.gate.FIRST_PAUSE", 0.01)
    proxy = start_proxy(url)
    server = ServerEngine(proxy.url)
    server._method = method
    ids, rows = DigitsSimulator(server).build_prompt("buying", [0, 1, 2], VOCABULARY)
    levels = DigitsSimulator(server).level_token_ids

    def ask(kind):
        if kind == "text":
            text = server.generate(ASKED, max_tokens=8, temperature=0.0, seed=0).text
            return parse_single(text, [])[0].text
        return server.level_distributions(ids, rows, levels).tolist()

    clean = {kind: ask(kind) for kind in ("text", "levels")}
    for name in FAULTS:
        for kind in clean:
            proxy.inject([name])
            failed = None
            try:
                assert ask(kind) == clean[kind], name
            except LlmReplyError as error:
                failed = error
            if name in PASSING or not proxy.injected[name]:
                assert failed is None, (name, kind)
            else:
                assert failed is not None, (name, kind)
                assert failed.reply, (name, kind)
            proxy.injected.clear()
    proxy.inject([])
    assert {kind: ask(kind) for kind in clean} == clean
    server.close()
    proxy.shutdown()


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A folder with `x.db`: the neurons of a tiny subject."""
    folder = tmp_path_factory.mktemp("collected")
    tiny_subject(folder / "model")
    texts = [words(600, seed=n) for n in range(12)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    done = run(folder / "x.db", "collect", "--model", "model", "--dataset", "text.jsonl")
    assert done.returncode == 0, done.stderr
    return folder


def start(db, *typed):
    command = [sys.executable, "-m", "neuroexplain.cli.main", *typed, "--db", str(db)]
    environment = {**os.environ, "NEUROEXPLAIN_VLLM": COMMAND}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=db.parent, env=environment
    )


def run(db, *typed):
    process = start(db, *typed)
    out, err = process.communicate(timeout=900)
    return subprocess.CompletedProcess(typed, process.returncode, out, err)


def start_proxy(url):
    proxy = Proxy(url)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    return proxy


def copy_of(collected, name):
    (collected / name).write_bytes((collected / "x.db").read_bytes())
    return collected / name


# SmolLM2 gives each a hypothesis in excerpts. For most of the others of this subject it repeats itself.
NEURONS = ("0:2", "1:6", "0:8")
EXPLAIN = ("explain", "--neurons", ",".join(NEURONS), "--explainer", "excerpts", "--scorer", "digits")


def read_results(db):
    """What each neuron's page says, without ids and times."""
    results = {}
    for neuron in NEURONS:
        page = json.loads(run(db, "show", neuron, "--json").stdout)
        results[neuron] = [without_ids(explanation) for explanation in page["explanations"]]
    return results


def without_ids(value):
    if isinstance(value, dict):
        return {
            key: without_ids(item)
            for key, item in value.items()
            if key not in ("id", "seconds", "control_explanation_id")
        }
    return [without_ids(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def clean(collected, url):
    """The proxy that has recorded a run without faults, and the results of the run."""
    proxy = start_proxy(url)
    db = copy_of(collected, "clean.db")
    done = run(db, *EXPLAIN, "--server", proxy.url)
    assert done.returncode == 0, done.stderr
    assert run(db, "verify").returncode == 0
    return proxy, read_results(db)


def test_explain_and_score_end_to_end(clean):
    _, results = clean
    for explanation in itertools.chain(*results.values()):
        assert (explanation["explainer"], explanation["status"]) == ("excerpts", "ok")
        assert {s["scorer"] for s in explanation["scores"]} == {"digits"}
        assert all(len(s["digit_mass"]) == 32 for s in explanation["predictions"])


def test_the_default_scorer_and_lexical_by_the_same_server(collected, url):
    db = copy_of(collected, "combined.db")
    explained = run(db, "explain", "--neurons", ",".join(NEURONS), "--explainer", "tokens", "--server", url)
    assert explained.returncode == 0, explained.stderr
    assert "Reading probabilities by logprob_token_ids" in explained.stderr
    scored = run(db, "score", "0:2", "--scorer", "lexical", "--server", url)
    assert scored.returncode == 0, scored.stderr
    scorers = {}
    for neuron, explanations in read_results(db).items():
        scores = [score for explanation in explanations for score in explanation["scores"]]
        scorers[neuron] = {score["scorer"] for score in scores}
        assert not {score["status"] for score in scores} & {"llm_error", "parse_error", "low_digit_mass"}
    assert scorers == {"0:2": {"combined", "lexical"}, "1:6": {"combined"}, "0:8": {"combined"}}
    assert run(db, "verify").returncode == 0


@pytest.mark.parametrize(
    "faults", [list(PASSING), [*list(PASSING), "shifted", "positive", "miscounted", "empty"]]
)
def test_a_run_with_faults_finds_the_same_but_for_what_is_marked_failed(collected, clean, faults):
    proxy, expected = clean
    proxy.inject(faults, every=2)
    db = copy_of(collected, f"faults{len(faults)}.db")
    done = run(db, *EXPLAIN, "--server", proxy.url)
    assert len(proxy.injected) >= len(PASSING) - 1
    proxy.injected.clear()
    lasting = len(faults) > len(PASSING)
    assert (done.returncode == 0) is not lasting, done.stderr
    results, equal = read_results(db), 0
    for neuron in NEURONS:
        for explanation, true in zip(results[neuron], expected[neuron], strict=True):
            scored = explanation["status"] == "ok" and all(
                s["status"] not in ("llm_error", "parse_error") for s in explanation["scores"]
            )
            assert scored or lasting
            if scored:
                assert explanation == true
                equal += 1
            elif explanation["status"] == "ok":
                assert explanation["text"] == true["text"]
                assert all(s["value"] is None and s["reason"] for s in explanation["scores"])
            else:
                assert explanation["text"] is None
    assert equal or lasting
    assert run(db, "verify").returncode == 0
    proxy.inject([])
    again = run(db, *EXPLAIN, "--server", proxy.url, "--retry-failed")
    assert again.returncode == 0, again.stderr
    assert read_results(db) == expected


def test_a_client_killed_half_way_goes_on(collected, clean):
    proxy, expected = clean
    proxy.inject([])
    proxy.slow = 0.5
    db = copy_of(collected, "killed.db")
    process = start(db, *EXPLAIN, "--server", proxy.url, "--in-flight", "2")
    time.sleep(15)
    process.kill()
    process.communicate()
    proxy.slow = 0.0
    done = run(db, *EXPLAIN, "--server", proxy.url, "--in-flight", "2")
    assert done.returncode == 0, done.stderr
    assert read_results(db) == expected
    assert run(db, "verify").returncode == 0


def test_a_server_killed_half_way_costs_time_and_nothing_else(collected, served, clean):
    _, expected = clean
    db = copy_of(collected, "server.db")
    process = start(db, *EXPLAIN, "--server", served.url)
    time.sleep(12)
    served.kill()
    time.sleep(3)
    assert process.poll() is None, process.communicate()
    served.start()
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert run(db, "verify").returncode == 0
    results = read_results(db)
    assert [[explanation["text"] for explanation in results[n]] for n in NEURONS] == [
        [explanation["text"] for explanation in expected[n]] for n in NEURONS
    ]
    served.kill()
    lost = run(copy_of(collected, "lost.db"), *EXPLAIN, "--server", served.url, "--max-wait", "5")
    assert (lost.returncode, "There is no server" in lost.stderr) == (2, True)


def test_a_server_that_does_not_come_up_shows_its_log(tmp_path):
    with (
        pytest.raises(EngineError, match=r"(?s)vLLM ended with status.*log:\n.*"),
        serve_vllm(str(tmp_path), (), COMMAND, print),
    ):
        pass


def test_explain_with_vllm_is_one_command(collected):
    db = copy_of(collected, "vllm.db")
    done = run(
        db, "explain", "--neurons", "0:2", "--no-score", "--vllm", MODEL, "--vllm-args", " ".join(ARGUMENTS)
    )
    assert done.returncode == 0, done.stderr
    page = json.loads(run(db, "show", "0:2", "--json").stdout)
    assert (page["explanations"][0]["explainer"], page["explanations"][0]["status"]) == ("category", "ok")
    left = subprocess.run(
        ["pgrep", "-f", f"api_server --model {MODEL}.*{db.parent.name}"], capture_output=True, check=False
    )
    assert left.stdout == b""
