"""Going on with a request that another engine has begun.

Of each choice the client has some tokens and the text they came with. Both are functions of the tokens: they are
pushed through detokenizer and stop texts once more, and text goes on where the client's ends. A choice whose last
token had ended it, which the client has not heard of, is closed at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.core.sequence import Begun
from octavo.decode.grammar import Follower
from octavo.engine.outputs import ChoiceEnded, Delta, Update
from octavo.engine.tracking import Tracked
from octavo.link.frames import Progress


def take_up(
    tracked: Tracked, progress: Sequence[Progress], max_model_len: int
) -> tuple[tuple[Begun, ...], list[Update]]:
    """Bring every choice to where its client is.

    Returns the choices that have something left to draw, and what clients lack of those that have not.
    """
    known = {one.index: one for one in progress}
    begun: list[Begun] = []
    updates: list[Update] = []
    for index in range(tracked.params.n):
        one = known.get(index, Progress(index, (), 0, False))
        growing = tracked.choice(index)
        if one.has_ended:
            growing.ended = True
            growing.output.token_ids = list(one.token_ids)
            continue
        ended = _replayed(tracked, one, max_model_len)
        lacking = growing.output.text[one.num_chars :]
        if lacking:
            updates.append(Delta(tracked.request.request_id, index, lacking, ()))
        if ended is None:
            begun.append(Begun(index, one.token_ids))
        else:
            updates.append(ended)
    tracked.num_drawn_tokens = sum(len(growing.output.token_ids) for growing in tracked.choices.values())
    return tuple(begun), updates


def _replayed(tracked: Tracked, one: Progress, max_model_len: int) -> ChoiceEnded | None:
    """Push the tokens of a choice; returns its end, if its last token was that."""
    if not one.token_ids:
        return None
    *before, last = one.token_ids
    for token in before:
        tracked.push(one.index, token, None, is_stop=False)
    request, params = tracked.request, tracked.params
    num_output = len(one.token_ids)
    is_complete = _is_complete(tracked, before, last)
    is_end = last in request.end_token_ids
    ends = (is_end and not params.ignore_eos) or last in params.stop_token_ids
    stop_token = last if ends and num_output >= params.min_tokens else None
    is_stop = stop_token is not None or (is_complete and is_end)
    _, hit = tracked.push(one.index, last, None, is_stop=is_stop, is_complete=is_complete)
    longest = max_model_len - len(request.prompt)
    if params.max_tokens is not None:
        longest = min(longest, params.max_tokens)
    if stop_token is not None:
        reason = "stop"
    elif num_output >= longest:
        reason = "length"
    elif hit is not None or is_complete:
        reason = "stop"
    else:
        return None
    ended = tracked.closed(one.index, reason, stop_token)[-1]
    assert isinstance(ended, ChoiceEnded)
    return ended


def _is_complete(tracked: Tracked, before: Sequence[int], last: int) -> bool:
    """Whether the grammar lets nothing follow, as the worker that drew the last token had said."""
    if tracked.grammar is None:
        return False
    if last in tracked.request.end_token_ids and not tracked.params.ignore_eos:
        return True
    return Follower(tracked.grammar, before).accept(last)
