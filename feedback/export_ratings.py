"""What people said of single answers, as rows to export: thumbs, ratings, flags, comments, signals.

From the feedback routes and from labeling tasks, where each output that somebody said something of
is a row. A snapshot keeps only what a reward model reads of this, so the rows are made here, from
the same records and by the same rules. Pure.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace

from core.records import Answer, Completion, Feedback, LabelingOutput, LabelingTask, Split
from core.settings import Settings
from feedback.dataset import Digest, Gathered, heldout_raters, placed
from feedback.export_columns import Row, messages_of, metadata_of, told
from feedback.preferences import SplitOf, fate_of
from feedback.speakers import with_speakers
from feedback.split import split_by, split_of
from feedback.texts import Messages, plain_messages, prompt_json


def rating_rows(
    gathered: Gathered, settings: Settings, *, digest: Digest, now: float
) -> Iterator[Row]:
    """One row for each rater and answer, by feedback id and then by task."""
    how = split_by(gathered.num_users, settings.log)
    spoken = with_speakers(gathered.feedback, gathered.completions, settings=settings.feedback)
    gathered = replace(gathered, feedback=spoken)
    heldout = heldout_raters(gathered, by_name=bool(settings.feedback.heldout_raters))

    def alone(tenant: str, user: str, messages: Messages) -> Split:
        by_user = how == "user" and user
        return split_of(user if by_user else digest(tenant, messages), settings.log)

    completions, owners = placed(gathered.completions.values(), split=alone, digest=digest)

    def split(tenant: str, user: str, messages: Messages) -> Split:
        return owners.get(digest(tenant, messages)) or alone(tenant, user, messages)

    for said in sorted(spoken, key=lambda f: f.id):
        if said.kind in ("rating", "signal"):
            joined = fate_of(said, completions, now=now).status == "joined"
            if joined:
                yield _of_feedback(said, completions, heldout=said.rater in heldout)
    for task in sorted(gathered.tasks, key=lambda t: t.id):
        yield from _of_task(task, heldout, split)


def _of_feedback(said: Feedback, completions: Mapping[str, Completion], *, heldout: bool) -> Row:
    (output,) = said.outputs
    completion = completions[output.token]
    answer = completion.choices[output.choice]
    who = {"rater": said.rater, "user": completion.user, "split": completion.split}
    return {
        "feedback_id": said.id,
        "prompt": messages_of(prompt_json(plain_messages(completion.messages) or [])),
        "completion": answer.text,
        "completion_id": f"{completion.id}/{output.choice}",
        "thumb": said.thumb,
        "rating": said.rating,
        "signal": said.signal,
        "flags": json.dumps(said.flags, sort_keys=True),
        "comment": (said.text or {}).get("comment"),
        **told({**who, "heldout_rater": heldout}, said.updated_at),
        "finish_reason": answer.finish_reason,
        "metadata": metadata_of(completion),
    }


def _of_task(task: LabelingTask, heldout: set[str], split: SplitOf) -> Iterator[Row]:
    plain = plain_messages(task.messages)
    if plain is None:
        return
    where = split(task.tenant, task.user, task.messages)
    for answer in task.answers:
        who = {"rater": answer.rater, "user": task.user, "split": where}
        for place, output in enumerate(task.outputs):
            said = _said_of(output, answer)
            if answer.ranking and not answer.held and any(said.values()):
                yield {
                    "feedback_id": f"{task.id}:{answer.rater}/{place}",
                    "prompt": messages_of(prompt_json(plain)),
                    "completion": output.text,
                    "completion_id": f"{task.id}/{place}",
                    "thumb": None,
                    "signal": None,
                    **said,
                    "flags": json.dumps(said["flags"] or {}, sort_keys=True),
                    **told({**who, "heldout_rater": answer.rater in heldout}, answer.answered_at),
                    "finish_reason": output.finish_reason or "stop",
                    "metadata": "{}",
                }


def _said_of(output: LabelingOutput, answer: Answer) -> Row:
    return {
        "rating": answer.ratings.get(output.output_id),
        "flags": answer.flags.get(output.output_id),
        "comment": answer.notes.get(output.output_id),
    }
