"""One request -> the explanations in its reply, or a failed attempt. Nothing is stored here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import Exemplar, Explanation, Status, why_dead
from neuroexplain.explaining.explainers import (
    MOST_MEANINGS,
    Hypothesis,
    Mistake,
    render_mistakes,
    union_text,
)
from neuroexplain.explaining.plan import ExplainTask, Requests
from neuroexplain.llm.engine import Message


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
    assert requests.prompt is not None
    assert requests.revision is not None
    messages = requests.explainer.revision_messages(
        requests.prompt,
        requests.revision,
        records,
        task.tokens,
        explanation.text or "",
        render_mistakes(mistakes, task.tokens),
    )
    return _generate(requests, request, messages, records)[0]


def _ask(
    task: ExplainTask, requests: Requests, request: Explanation, records: Sequence[Exemplar]
) -> list[Explanation]:
    """Every explanation in the answer to one request."""
    evidence, explainer = task.evidence, requests.explainer
    if evidence.is_dead:
        return [replace(request, status=Status.DEAD, reason=why_dead(evidence.side))]
    if not records:
        reason = f"there is no {evidence.strongest} record to show"
        if evidence.split_rule == "passages":
            reason = "it fires in no record of the split explain"
        return [replace(request, status=Status.NO_RECORDS, reason=reason)]
    if requests.prompt is not None and requests.engine is not None:
        messages = explainer.messages(requests.prompt, records, task.tokens)
        return _generate(requests, request, messages, records)
    try:
        return [replace(request, text=explainer.render(records, task.tokens))]
    except LlmReplyError as error:
        return [_failed(request, error)]


def _generate(
    requests: Requests, request: Explanation, messages: list[Message], records: Sequence[Exemplar]
) -> list[Explanation]:
    assert requests.engine is not None
    try:
        reply = requests.engine.generate(messages, **request.provenance.sampling)
    except LlmReplyError as error:
        return [_failed(request, error)]
    provenance = replace(
        request.provenance,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        seconds=reply.seconds,
    )
    answer = replace(request, provenance=provenance, reply=reply.text)
    try:
        hypotheses = requests.explainer.parse(reply.text, records)
    except LlmReplyError as error:
        return [_failed(answer, error)]
    return _explanations(answer, hypotheses)


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
