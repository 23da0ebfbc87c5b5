"""An analyzer endpoint that takes its time: `python -m tools.slow_endpoint --seconds 2 -- COMMAND...`

Runs COMMAND with OPENAI_BASE_URL, OPENAI_MODEL and OPENAI_API_KEY set to an endpoint on loopback which answers every
question, however many there are at once, after so many seconds with the same skills:

    python -m tools.slow_endpoint --seconds 2 -- python -m megatron_opid.train skills.analyzer=openai experiment=...
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

SKILLS = '{"summary": "s", "episode_skill": "open it .", "step_skills": [{"step": 1, "skill": "turn left ."}]}'
MODEL = "m"


@asynccontextmanager
async def slow_endpoint(latency_s: float) -> AsyncIterator[str]:
    """The base URL of an OpenAI-compatible endpoint on loopback that takes `latency_s`."""
    message = {"role": "assistant", "content": SKILLS}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    completion = {"id": "c", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]}
    models = {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "x"}]}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while lines := (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n"):
                is_question = lines[0].startswith(b"post")
                if is_question:
                    (size,) = (int(line[15:]) for line in lines if line.startswith(b"content-length:"))
                    await reader.readexactly(size)
                    await asyncio.sleep(latency_s)
                body = json.dumps(completion if is_question else models).encode()
                head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionResetError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()


async def _run(command: list[str], latency_s: float) -> int:
    async with slow_endpoint(latency_s) as url:
        own = {"OPENAI_BASE_URL": url, "OPENAI_MODEL": MODEL, "OPENAI_API_KEY": "none"}
        process = await asyncio.create_subprocess_exec(*command, env=os.environ | own)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # the terminal's reaches the command as well
        loop.add_signal_handler(signal.SIGTERM, process.terminate)
        return await process.wait()


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the command's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    return asyncio.run(_run(options.command, options.seconds))


if __name__ == "__main__":
    raise SystemExit(main())
