"""One engine process: started, configured, listened to, and ended. It never outlives this object's `stop`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import octavo
from octavo.config import EngineConfig
from octavo.errors import ConfigError, LoadError, OctavoError
from octavo.link import frames
from octavo.link.channel import Channel
from octavo.link.wire import LinkClosed, LinkError

COMMAND = (sys.executable, "-m", "octavo.engine.process")
CONNECT_S = 60.0
"""A process that has not connected by then is not coming."""
EXIT_S = 10.0

OnFrame = Callable[[frames.ToFront], None]
OnLoading = Callable[[frames.Loading], None]


class Replica:
    """An engine process and the link to it. Used once: a restarted engine is a new Replica of a higher epoch.

    command       what to run; `--socket PATH --epoch N --trail DESCRIPTOR` is appended
    num_engines   that share the machine with it, itself included
    memory_limit  bytes an earlier engine in its place took, if there was one
    """

    def __init__(
        self,
        config: EngineConfig,
        epoch: int,
        command: Sequence[str] = COMMAND,
        *,
        num_engines: int = 1,
        memory_limit: int | None = None,
        trail_key: bytes = b"",
    ) -> None:
        self._config = config
        self._epoch = epoch
        self._command = command
        self._num_engines = num_engines
        self._memory_limit = memory_limit
        self._trail_key = trail_key
        self._was_ended_here = False
        self._trail: int | None = _shared_memory(config.runtime.recorder_bytes)
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel[frames.ToFront] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def trail(self) -> bytes:
        """What the engine's recorder has written, whether it lives or not."""
        return b"" if self._trail is None else os.pread(self._trail, os.fstat(self._trail).st_size, 0)

    def forget(self) -> None:
        """Nobody will ask for its trail any more."""
        if self._trail is not None:
            os.close(self._trail)
            self._trail = None

    @property
    def was_killed(self) -> bool:
        """Somebody else ended it by a signal that no fault of its own raises: an operator, or a lack of memory."""
        code = self._process.returncode if self._process else None
        return code is not None and -code in (signal.SIGKILL, signal.SIGTERM) and not self._was_ended_here

    async def start(self, on_loading: OnLoading) -> frames.Ready:
        """Start the process and wait until it serves.

        Raises ConfigError or LoadError with the engine's own words; the process has ended by then.
        """
        try:
            with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
                self._channel = await self._connected(Path(folder) / "engine.sock")
            configure = frames.Configure(
                protocol=frames.PROTOCOL,
                version=octavo.__version__,
                config=self._config,
                num_engines=self._num_engines,
                memory_limit=self._memory_limit,
                trail_key=self._trail_key,
            )
            await self._channel.send(configure)
            return await self._loaded(self._channel, on_loading)
        except LinkError as error:
            how = await self._ending()
            raise LoadError(f"the engine process {how} while loading ({error})") from error
        except BaseException:
            await self.kill()
            raise

    async def serve(self, on_frame: OnFrame) -> str:
        """Hand on every frame until the link is over; returns how the process ended, as part of a sentence."""
        assert self._channel is not None
        try:
            while True:
                on_frame(await self._channel.receive())
        except LinkClosed:
            return await self._ending()
        except LinkError as error:
            await self.kill()
            return f"broke the link ({error})"

    def post(self, *sent: frames.Frame) -> None:
        """Send without waiting. Raises LinkError."""
        if self._channel is None:
            raise LinkClosed("the engine is not connected")
        self._channel.post(*sent)

    @property
    def num_unsent_bytes(self) -> int:
        """What the engine has not taken yet."""
        return 0 if self._channel is None else self._channel.num_unsent_bytes

    async def stop(self, within_s: float) -> None:
        """Let what runs finish, then end the process; kill it when `within_s` have passed."""
        with contextlib.suppress(LinkError):
            self.post(frames.Drain())
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), within_s)
        await self.kill()

    async def kill(self) -> None:
        """End the process now, if it has not ended. Only ever this object's own child."""
        if self._process is not None and self._process.returncode is None:
            self._was_ended_here = True
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._channel is not None:
            await self._channel.close()

    async def _connected(self, socket: Path) -> Channel[frames.ToFront]:
        """Listen on a socket in a folder only this user can enter, start the process, wait for it to come."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[Channel[frames.ToFront]] = loop.create_future()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if arrived.done():
                writer.close()
            else:
                arrived.set_result(Channel(reader, writer, frames.TO_FRONT, epoch=self._epoch))

        listening = await asyncio.start_unix_server(accept, str(socket))
        try:
            assert self._trail is not None, "it is started once"
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                "--socket",
                str(socket),
                "--epoch",
                str(self._epoch),
                "--trail",
                str(self._trail),
                pass_fds=(self._trail,),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=2,  # our own standard output is for the ready line
            )
            ended = asyncio.create_task(self._process.wait())
            either: set[asyncio.Future[Any]] = {arrived, ended}
            await asyncio.wait(either, timeout=CONNECT_S, return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            if not arrived.done():
                why = "it never connected" if ended.done() else f"it did not connect within {CONNECT_S:g} s"
                raise LinkError(why)
            return arrived.result()
        finally:
            listening.close()

    async def _loaded(self, channel: Channel[frames.ToFront], on_loading: OnLoading) -> frames.Ready:
        while True:
            match frame := await channel.receive():
                case frames.Hello():
                    _check_versions(frame)
                case frames.Loading():
                    on_loading(frame)
                case frames.LoadFailed():
                    raise _load_error(frame)
                case frames.Ready():
                    return frame
                case frames.Stats():
                    continue
                case _:
                    raise LinkError(f"it sent {type(frame).__name__} before Ready")

    async def _ending(self) -> str:
        """Wait a little for the process to end by itself, then see to it; says how it ended."""
        if self._process is None:
            return "was not started"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), EXIT_S)
        had_ended = self._process.returncode is not None
        await self.kill()
        return _described(self._process.returncode) if had_ended else "closed the link and was killed"


def _shared_memory(num_bytes: int) -> int:
    """A descriptor of memory that has no name and outlives the process it is given to."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("octavo-trail")
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.truncate(handle, num_bytes)
    return handle


def _check_versions(hello: frames.Hello) -> None:
    if (hello.protocol, hello.version) != (frames.PROTOCOL, octavo.__version__):
        raise LoadError(
            f"the engine process is Octavo {hello.version} (link protocol {hello.protocol}), this is"
            f" {octavo.__version__} ({frames.PROTOCOL}); install one version"
        )


def _load_error(frame: frames.LoadFailed) -> OctavoError:
    kind = ConfigError if frame.code == ConfigError.code else LoadError
    return kind(frame.message)


def _described(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = "; is the machine out of memory?" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"
