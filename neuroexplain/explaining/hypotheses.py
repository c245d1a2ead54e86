"""One request -> the explanations in its reply, or a failed attempt. Nothing is stored here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import Exemplar, Explanation, Status, Tokens, why_dead
from neuroexplain.explaining.explainers import narrower_messages, worked_answers
from neuroexplain.explaining.plan import ExplainTask, Requests
from neuroexplain.explaining.rendering import Mistake, render_mistakes
from neuroexplain.explaining.replies import (
    MOST_MEANINGS,
    Hypothesis,
    is_copy,
    is_part_of_speech,
    union_text,
    whole_text,
)
from neuroexplain.llm.engine import Message

# The candidate that is asked for without worked examples, where these are drawn: what helps a model of 0.5B
# hinders one of 1.5B, and other units (docs/decisions.md).
WITHOUT_WORKED = 1


def ask_candidates(
    task: ExplainTask, requests: Requests, records: Sequence[Exemplar]
) -> Iterator[Explanation]:
    """A side's candidates, stored and new, without revisions. The explainer is shown `records`."""
    if requests.explainer.gives_several and task.answers:
        yield from (task.answers[candidate] for candidate in sorted(task.answers))
        return
    for candidate in range(requests.n_candidates):
        stored = task.answers.get(candidate)
        if stored is None:
            request = requests.request(task.unit.id, candidate, task.evidence.side)
            explanations = _ask(task, requests, request, records)
        else:
            explanations = [stored]
        yield from explanations
        if explanations[0].status.has_nothing_to_ask:
            return


def ask_revision(
    task: ExplainTask,
    requests: Requests,
    records: Sequence[Exemplar],
    explanation: Explanation,
    mistakes: Sequence[Mistake],
    candidate: int,
) -> Explanation:
    """Ask again, showing where the prediction from the explanation was most wrong."""
    request = requests.request(task.unit.id, candidate, task.evidence.side)
    if not mistakes:
        reason = "there is no predicted record whose mistakes could be shown"
        return replace(request, status=Status.NO_RECORDS, reason=reason)
    return ask_reviser(requests, request, records, task.tokens, explanation, mistakes)


def ask_reviser(
    requests: Requests,
    request: Explanation,
    records: Sequence[Exemplar],
    tokens: Tokens,
    explanation: Explanation,
    mistakes: Sequence[Mistake],
) -> Explanation:
    """The revision of an explanation that made these mistakes, at least one."""
    assert requests.prompt is not None
    assert requests.revision is not None
    draw = int(request.provenance.sampling["seed"])
    worked = requests.explainer.messages(requests.prompt, records, tokens, draw=draw)
    ask = partial(
        requests.explainer.revision_messages,
        requests.prompt,
        requests.revision,
        records,
        tokens,
        explanation.rule or explanation.text or "",
        render_mistakes(mistakes, tokens),
        draw=draw,
    )
    return _answers(requests, request, ask, worked_answers(worked), records, tokens)[0]


def _ask(
    task: ExplainTask, requests: Requests, request: Explanation, records: Sequence[Exemplar]
) -> list[Explanation]:
    """Every explanation in the answer to one request."""
    evidence = task.evidence
    if evidence.is_dead:
        return [replace(request, status=Status.DEAD, reason=why_dead(evidence.side))]
    if not records:
        reason = f"there is no {evidence.strongest} record to show"
        if evidence.split_rule == "passages":
            reason = "it fires in no record of the split explain"
        return [replace(request, status=Status.NO_RECORDS, reason=reason)]
    if requests.bank is not None:
        return [_label(task, requests, request, records)]
    return ask_explainer(requests, request, records, task.tokens)


def _label(
    task: ExplainTask, requests: Requests, request: Explanation, records: Sequence[Exemplar]
) -> Explanation:
    """The label of the bank that fits the side best, with its examples."""
    assert requests.bank is not None
    label = requests.bank.choose(task.evidence)
    if label is None:
        reason = "no label could be compared: its select records do not vary"
        return replace(request, status=Status.CONSTANT_ACTIVATIONS, reason=reason)
    examples = requests.explainer.find_examples(records, task.tokens, label)
    return _with_examples(replace(request, text=label), examples)


def ask_explainer(
    requests: Requests, request: Explanation, records: Sequence[Exemplar], tokens: Tokens
) -> list[Explanation]:
    """Every explanation that the explainer gives for at least one record; one if the attempt failed."""
    explainer, prompt = requests.explainer, requests.prompt
    try:
        if prompt is None or requests.engine is None:
            return [replace(request, text=explainer.render(records, tokens))]
        draw = int(request.provenance.sampling["seed"])
        ask = partial(explainer.messages, prompt, records, tokens, draw=draw)
        if prompt.pool and request.candidate == WITHOUT_WORKED:
            ask = partial(ask, with_worked=False)
        worked = worked_answers(ask())
    except LlmReplyError as error:  # of records that show nothing
        return [_failed(request, error)]
    return _answers(requests, request, ask, worked, records, tokens)


def _answers(
    requests: Requests,
    request: Explanation,
    ask: Callable[..., list[Message]],
    worked: Sequence[str],
    records: Sequence[Exemplar],
    tokens: Tokens,
) -> list[Explanation]:
    """The explanations in the reply to `ask()`. worked: the answers to its worked examples.

    If one of these is answered, `ask(with_worked=False)` is sent; if it comes again, the attempt failed.
    """
    answer, hypotheses = _generate(requests, request, ask(), records)
    if any(is_copy(hypothesis.text, worked) for hypothesis in hypotheses):
        answer, hypotheses = _generate(requests, answer, ask(with_worked=False), records)
        if any(is_copy(hypothesis.text, worked) for hypothesis in hypotheses):
            reason = "the answer is that of a worked example, and was given again without it"
            return [replace(answer, status=Status.PARSE_ERROR, reason=reason)]
    if len(hypotheses) == 1 and is_part_of_speech(hypotheses[0].text):
        answer, hypotheses = _narrow(requests, answer, hypotheses, records, tokens)
    if not hypotheses:
        return [answer]
    explanations = _explanations(answer, hypotheses)
    return [
        _with_examples(e, requests.explainer.find_examples(records, tokens, e.text or ""))
        for e in explanations
    ]


def _narrow(
    requests: Requests,
    answer: Explanation,
    hypotheses: list[Hypothesis],
    records: Sequence[Exemplar],
    tokens: Tokens,
) -> tuple[Explanation, list[Hypothesis]]:
    """The answer to the question which words of a part of speech are meant, if the explainer asks that.

    A worked example's answer, another bare part of speech or no hypothesis at all leaves the answer as it is,
    with the cost of both requests. A request that failed fails the attempt, so that a retry can mend it.
    """
    prompt = requests.prompt.narrower if requests.prompt else None
    if prompt is None:
        return answer, hypotheses
    words, draw = requests.explainer.render(records, tokens), int(answer.provenance.sampling["seed"])
    messages = narrower_messages(prompt, hypotheses[0].text, words, draw=draw)
    second, narrower = _generate(requests, answer, messages, records)
    if second.status not in (Status.OK, Status.PARSE_ERROR):
        return second, []
    worked = [example.explanation for example in prompt.pool]
    if narrower and not is_part_of_speech(narrower[0].text) and not is_copy(narrower[0].text, worked):
        return second, narrower
    return replace(answer, provenance=second.provenance), hypotheses


def _with_examples(rule: Explanation, examples: tuple[str, ...]) -> Explanation:
    """The explanation whose text is a rule, followed by its examples if there are any."""
    if not examples or rule.text is None:
        return rule
    return replace(rule, text=whole_text(rule.text, examples), rule=rule.text, examples=examples)


def _generate(
    requests: Requests, request: Explanation, messages: list[Message], records: Sequence[Exemplar]
) -> tuple[Explanation, list[Hypothesis]]:
    """The answer with what it cost, added to what `request` did, and its hypotheses; none if it failed."""
    assert requests.engine is not None
    cost = request.provenance
    try:
        reply = requests.engine.generate(messages, **cost.sampling)
    except LlmReplyError as error:
        return _failed(request, error), []
    provenance = replace(
        cost,
        prompt_tokens=cost.prompt_tokens + reply.prompt_tokens,
        completion_tokens=cost.completion_tokens + reply.completion_tokens,
        seconds=cost.seconds + reply.seconds,
    )
    answer = replace(request, provenance=provenance, reply=reply.text)
    try:
        return answer, requests.explainer.parse(reply.text, records)
    except LlmReplyError as error:
        return _failed(answer, error), []


def _explanations(answer: Explanation, hypotheses: Sequence[Hypothesis]) -> list[Explanation]:
    """One explanation for each hypothesis, and their union. The first one has the reply and the cost."""
    first = replace(answer, text=hypotheses[0].text, covers=hypotheses[0].covers)
    if len(hypotheses) == 1:
        return [first]
    free = replace(answer.provenance, prompt_tokens=0, completion_tokens=0, seconds=0.0)
    rest = replace(answer, provenance=free, reply=None)
    others = [
        replace(rest, text=hypothesis.text, covers=hypothesis.covers, candidate=candidate)
        for candidate, hypothesis in enumerate(hypotheses[1:], answer.candidate + 1)
    ]
    texts = tuple(hypothesis.text for hypothesis in hypotheses)
    covered = {rank for hypothesis in hypotheses for rank in hypothesis.covers or ()}
    union = replace(
        rest, text=union_text(texts), covers=tuple(sorted(covered)), parts=texts, candidate=MOST_MEANINGS
    )
    return [first, *others, union]


def _failed(explanation: Explanation, error: LlmReplyError) -> Explanation:
    return replace(explanation, status=error.status, reason=error.reason, reply=error.reply)
