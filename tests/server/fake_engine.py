"""An engine process without a model: it speaks the link and answers by rules a test can know.

The answer to a prompt is the text after the last "say:" in it, or else the whole prompt in capitals; choice i of
several has "#i" in front when i > 0. Commands in the prompt change what happens:

    !die       the process crashes after two tokens            !error     the choice ends with an error
    !refuse    refused as too long                             !busy      refused with a time to come back
    !forever   goes on until cancelled                         !slow      a pause between tokens
    !wait      accepted and then silent until cancelled        !garbage   bytes that are no frame
    !stray     a frame that makes no sense here                !gate=F    waits until there is a file F
    !priority  the answer is the request's priority            !pid       the answer is the process id
    !freeze=F  the process stops itself, unless there is a file F, which it makes first
    !hang      no step is made any more, and the pulse goes on
    !seed      the answer is the seed
    !terms     the answer is client, weight, priority and number of public tokens
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import signal
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

import octavo
from octavo.codec.detokenize import Detokenizer
from octavo.codec.numbers import NumberTokenizer
from octavo.codec.stop import StopMatcher
from octavo.codec.tokenizer import Tokenizer
from octavo.link import frames
from octavo.link.channel import Channel, connect
from octavo.link.wire import LinkError

MAX_MODEL_LEN = 4096
NUM_BLOCKS = 100
HIDDEN = 8
SLOW_S = 0.05


def answer_of(prompt: str, index: int) -> str:
    said = prompt.rpartition("say:")[2] if "say:" in prompt else prompt.upper()
    return (f"#{index} " if index else "") + said


def embedding_of(tokens: tuple[int, ...]) -> bytes:
    """A vector of length 1 that every token and its place changes."""
    values = [
        math.sin(k + sum((i + 1) * (token + 1) for i, token in enumerate(tokens))) for k in range(HIDDEN)
    ]
    length = math.hypot(*values)
    return array("f", [value / length for value in values]).tobytes()


def logprob_of(token: int, position: int) -> float:
    return -(position + 1) / 8 - token / 4096


class FakeEngine:
    def __init__(self, channel: Channel[frames.ToEngine], tokenizer: Tokenizer) -> None:
        self._channel = channel
        self._tokenizer = tokenizer
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._num_steps = 0
        self._num_cancelled = 0
        self._is_hanging = False

    async def run(self) -> int:
        pulse = asyncio.create_task(self._pulse())
        try:
            while True:
                match frame := await self._channel.receive():
                    case frames.Submit():
                        await self._submit(frame)
                    case frames.Cancel():
                        if task := self._tasks.get(frame.request_id):
                            self._num_cancelled += 1
                            task.cancel()
                    case frames.ResetCache():
                        await self._channel.send(frames.CacheWasReset(num_blocks=7))
                    case frames.ShowPages():
                        self._num_steps += 1  # so that a test sees how often it was asked
                        await self._channel.send(
                            frames.Pages(
                                states=bytes((0, 1, 1, 2, 2, 3)),
                                owners=(0, 1, 2, 1, 0, 2),
                                clients=("public", "somebody"),
                                num_blocks=6,
                            )
                        )
                    case frames.Drain():
                        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
                        return 0
        except LinkError:
            return 0
        finally:
            pulse.cancel()

    async def _submit(self, submit: frames.Submit) -> None:
        prompt = self._tokenizer.decode(submit.prompt_token_ids)
        refusal = None
        if "!refuse" in prompt:
            refusal = ("context_length_exceeded", "the prompt has 9999 tokens, at most 4096 fit", None)
        elif "!busy" in prompt:
            refusal = ("overloaded", "the engine is full", 7.2)
        if refusal is not None:
            code, message, retry = refusal
            await self._channel.send(
                frames.Refused(
                    request_id=submit.request_id,
                    code=code,
                    message=message,
                    param="prompt",
                    retry_after_s=retry,
                )
            )
            return
        await self._channel.send(frames.Accepted(request_id=submit.request_id))
        task = self._tasks[submit.request_id] = asyncio.create_task(self._answer(submit, prompt))
        task.add_done_callback(lambda _: self._tasks.pop(submit.request_id))

    async def _answer(self, submit: frames.Submit, prompt: str) -> None:
        drawn = 0
        try:
            if "!garbage" in prompt:
                self._channel._writer.write(b"\xff" * 64)
            if "!stray" in prompt:
                await self._channel.send(frames.Loading(phase="again"))
            if "!gate=" in prompt:
                gate = Path(prompt.rpartition("!gate=")[2].split()[0])
                while not gate.exists():
                    await asyncio.sleep(0.01)
            if "!wait" in prompt:
                await asyncio.sleep(3600)
            if "!priority" in prompt:
                prompt = f"say:{submit.priority}"
            if "!terms" in prompt:
                terms = (submit.client, f"{submit.cost_weight:g}", submit.priority, submit.num_public_tokens)
                prompt = "say:" + " ".join(map(str, terms))
            if "!seed" in prompt:
                prompt = f"say:{submit.seed}"
            if "!pid" in prompt:
                prompt = f"say:{os.getpid()}"
            if "!hang" in prompt:
                self._is_hanging = True
                await asyncio.sleep(3600)
            if (
                "!freeze=" in prompt
                and not (path := Path(prompt.rpartition("!freeze=")[2].split()[0])).exists()
            ):
                path.touch()
                os.kill(os.getpid(), signal.SIGSTOP)
            told = {one.index: one for one in submit.progress}
            for index in range(0 if submit.params.embed else submit.params.n):
                drawn += await self._choice(submit, prompt, index, told.get(index))
        except asyncio.CancelledError:
            await self._channel.send(
                frames.ChoiceEnded(request_id=submit.request_id, index=0, finish_reason="cancelled")
            )
        await self._channel.send(self._ended(submit, drawn))

    async def _choice(
        self, submit: frames.Submit, prompt: str, index: int, told: frames.Progress | None
    ) -> int:
        params = submit.params
        if told is not None and told.has_ended:
            return len(told.token_ids)
        detokenizer, stops = Detokenizer(self._tokenizer), StopMatcher(params.stop)
        end, hit, drawn = "stop", None, 0
        tokens = self._tokens(prompt, index)
        for known in told.token_ids if told is not None else ():
            assert next(tokens) == known, "what the client has is not what this engine says"
            stops.push(detokenizer.push(known))
            drawn += 1
        for token in tokens:
            if params.max_tokens is not None and drawn >= params.max_tokens:
                end = "length"
                break
            self._num_steps += not self._is_hanging
            if "!slow" in prompt:
                await asyncio.sleep(SLOW_S)
            if "!die" in prompt and drawn == 2:
                await asyncio.sleep(SLOW_S)
                os.kill(os.getpid(), signal.SIGSEGV)
            if "!error" in prompt and drawn == 2:
                await self._channel.send(
                    frames.ChoiceEnded(
                        request_id=submit.request_id,
                        index=index,
                        finish_reason="error",
                        error="the logits are NaN",
                    )
                )
                return drawn
            drawn += 1
            text, hit = stops.push(detokenizer.push(token))
            entry = self._entry(token, drawn - 1, params.logprobs)
            await self._channel.send(
                frames.Delta(
                    request_id=submit.request_id,
                    index=index,
                    text=text,
                    token_ids=(token,),
                    logprobs=None if entry is None else (entry,),
                )
            )
            if hit is not None:
                break
            await asyncio.sleep(0)
        if hit is None:
            rest = detokenizer.flush() + stops.flush()
            if rest:
                await self._channel.send(
                    frames.Delta(request_id=submit.request_id, index=index, text=rest, token_ids=())
                )
        await self._channel.send(
            frames.ChoiceEnded(request_id=submit.request_id, index=index, finish_reason=end, stop_reason=hit)
        )
        return drawn

    def _tokens(self, prompt: str, index: int) -> Iterator[int]:
        if "!forever" in prompt:
            while True:
                yield self._tokenizer.encode("x", add_special_tokens=False)[0]
        yield from self._tokenizer.encode(answer_of(prompt, index), add_special_tokens=False)

    def _entry(self, token: int, position: int, num_top: int | None) -> frames.TokenLogprob | None:
        if num_top is None:
            return None
        top = tuple((other, logprob_of(token, position) - other / 100) for other in range(num_top))
        return frames.TokenLogprob(token_id=token, logprob=logprob_of(token, position), top=top)

    def _ended(self, submit: frames.Submit, drawn: int) -> frames.Ended:
        prompt = None
        num_top = submit.params.prompt_logprobs
        if num_top is not None:
            entries = [self._entry(t, i, num_top) for i, t in enumerate(submit.prompt_token_ids)]
            prompt = (None, *entries[1:])
        return frames.Ended(
            request_id=submit.request_id,
            usage=frames.Usage(
                prompt_tokens=len(submit.prompt_token_ids),
                completion_tokens=drawn,
                cached_prompt_tokens=3 if submit.namespace == b"" else 1,
            ),
            metrics=frames.Metrics(arrival_s=submit.arrival_s),
            prompt_logprobs=prompt,
            embedding=embedding_of(submit.prompt_token_ids) if submit.params.embed else None,
        )

    async def _pulse(self) -> None:
        while True:
            with contextlib.suppress(LinkError):
                await self._channel.send(
                    frames.Stats(
                        num_steps=self._num_steps,
                        num_running=len(self._tasks),
                        num_waiting=self._num_cancelled,
                        used_kv_blocks=len(self._tasks),
                        num_kv_blocks=NUM_BLOCKS,
                        drained_per_s=0.5,
                        longest_step_s=0.001 if self._is_hanging else 0.0,
                    )
                )
            await asyncio.sleep(0.02)


async def main(socket: Path, epoch: int) -> int:
    channel = await connect(socket, frames.TO_ENGINE, epoch=epoch)
    configure = await channel.receive()
    model = configure.config.model.model
    version = "0.0.0" if model == "other-version" else octavo.__version__
    await channel.send(frames.Hello(protocol=frames.PROTOCOL, version=version, pid=os.getpid()))
    await channel.send(frames.Loading(phase="weights", done=1, total=2**20))
    if model == "missing":
        await channel.send(
            frames.LoadFailed(code="load_error", message="model.safetensors: tensor 'lm_head' is missing")
        )
        return 3
    if model == "unfit":
        await channel.send(frames.LoadFailed(code="invalid_config", message="one sequence needs 9 KV blocks"))
        return 3
    if model == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if model == "crash-later" and epoch == 1:
        return 9
    has_files = Path(model).is_dir()
    tokenizer = Tokenizer.from_path(model) if has_files else NumberTokenizer(300)
    await channel.send(
        frames.Ready(
            model="fake",
            model_path=model if has_files else None,
            tokenizer_path=model if has_files else None,
            fingerprint="ab" * 16 if model != "swapped" or epoch == 0 else "cd" * 16,
            dtype="float32",
            device="cpu",
            vocab_size=tokenizer.vocab_size,
            max_model_len=MAX_MODEL_LEN,
            num_parameters=0,
            num_kv_blocks=NUM_BLOCKS,
            block_tokens=16,
            memory=(("weights", 2**20, ""),),
            load_s=0.1,
            hidden_size=HIDDEN,
        )
    )
    try:
        return await FakeEngine(channel, tokenizer).run()
    finally:
        await channel.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=Path)
    parser.add_argument("--trail", type=int)
    parser.add_argument("--epoch", type=int)
    chosen = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sys.exit(asyncio.run(main(chosen.socket, chosen.epoch)))
    except LinkError:
        sys.exit(4)
