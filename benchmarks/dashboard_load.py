"""Many people at the Compare page at once: `python -m benchmarks.dashboard_load`.

Each session asks three questions through the queue of the real Gradio app, one after the other in one conversation;
two variants of the demo LVLM answer each. Every question holds a mark of its session, which the model is asked to
repeat and which the page must show with the answers. Answers are compared with those that the same conversation gets
alone: greedy decoding gives the same text whoever else asks. Needs the demo packages; starts a Ray cluster of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

QUESTIONS = ("Repeat this code: {mark}", "Say the code again, and the word sea. {mark}", "What was the code? {mark}")
_ANSWER_COLUMNS = 2


@dataclass
class Session:
    """What one session saw: the seconds of each question, and the last messages of each column."""

    mark: str
    seconds: list[float] = field(default_factory=list)
    chats: list[list[dict[str, Any]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=16, help="most tokens of an answer [16]")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        process, port = _start(Path(folder))
        try:
            asyncio.run(_measure(f"http://127.0.0.1:{port}", process.pid, options.sessions, options.tokens))
        finally:
            process.terminate()
            process.wait(60)


async def _measure(address: str, pid: int, count: int, tokens: int) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=900, limits=limits) as client:
        config = (await client.get("/config")).json()
        events = _events(config)
        alone = Session("warm0")
        await _talk(client, events, alone, tokens)  # loads the base and both variants
        before, watch = _memory(pid), _Watch(address, pid)
        begun = time.monotonic()
        sessions = [Session(f"{7919 * (number + 13) % 90000 + 10000}") for number in range(count)]
        await asyncio.gather(*(_talk(client, events, session, tokens) for session in sessions))
        seconds = time.monotonic() - begun
        watch.stop()
        again = [Session(session.mark) for session in sessions[:: max(1, count // 5)]]
        for session in again:
            await _talk(client, events, session, tokens)
    _report(sessions, again, seconds, watch, before, tokens)


def _report(
    sessions: Sequence[Session], again: Sequence[Session], seconds: float, watch: _Watch, before: int, tokens: int
) -> None:
    complete = [_complete(session) for session in sessions]
    by_mark = {session.mark: session for session in sessions}
    same = sum(_texts(by_mark[session.mark]) == _texts(session) for session in again)
    strangers = sum(_strangers(session, by_mark) for session in sessions)
    waits = sorted(wait for session in sessions for wait in session.seconds)
    said = sum(complete) * _ANSWER_COLUMNS
    asked = len(sessions) * len(QUESTIONS) * _ANSWER_COLUMNS
    problems = [problem for session in sessions for problem in session.problems]
    print(
        f"{len(sessions)} sessions, {len(QUESTIONS)} questions to {_ANSWER_COLUMNS} variants, at most {tokens} tokens"
    )
    print("| answers asked | answered | lost | with another session's mark | wall time, s | answers/s |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(f"| {asked} | {said} | {asked - said} | {strangers} | {seconds:.0f} | {said / seconds:.2f} |")
    print(f"conversations that were repeated alone: {len(again)}, with the same answers: {same}")
    print(f"seconds from question to both answers: median {statistics.median(waits):.1f}, most {waits[-1]:.1f}")
    pings = sorted(watch.pings)
    print(f"first page meanwhile: median {statistics.median(pings):.3f} s, most {pings[-1]:.3f} s ({len(pings)} times)")
    print(f"memory of app and replica (PSS): {before} MiB before, {watch.peak} MiB at most, {watch.last} MiB after")
    for problem in problems[:5]:
        print(f"problem: {problem}")
    if said != asked or strangers or same != len(again):
        raise SystemExit(1)


def _complete(session: Session) -> int:
    """Questions that both columns answered under this session's own questions."""
    return sum(
        all(_said(chat, number) and session.mark in _asked(chat, number) for chat in session.chats)
        for number in range(len(session.seconds))
    )


def _strangers(session: Session, known: dict[str, Session]) -> int:
    """Columns in which the mark of another session stands."""
    others = set(known) - {session.mark}
    return sum(any(other in str(chat) for other in others) for chat in session.chats)


def _texts(session: Session) -> list[list[str]]:
    return [[_said(chat, number) for number in range(len(QUESTIONS))] for chat in session.chats]


def _messages(chat: list[dict[str, Any]], role: str) -> list[str]:
    return ["".join(part.get("text", "") for part in each["content"]) for each in chat if each["role"] == role]


def _said(chat: list[dict[str, Any]], number: int) -> str:
    texts = _messages(chat, "assistant")
    return texts[number].strip() if number < len(texts) else ""


def _asked(chat: list[dict[str, Any]], number: int) -> str:
    texts = _messages(chat, "user")
    return texts[number] if number < len(texts) else ""


@dataclass(frozen=True)
class _Events:
    """The app's events by number, as a browser finds them in its configuration."""

    opened: int
    fresh: int
    ask: int
    answers: tuple[tuple[int, int], ...]


def _events(config: dict[str, Any]) -> _Events:
    dependencies = {each["id"]: each for each in config["dependencies"]}
    names = {each["id"]: each["props"].get("elem_id") for each in config["components"]}
    chats = tuple(number for number, name in names.items() if (name or "").startswith("compare-chat-"))
    box = next(number for number, name in names.items() if name == "compare-box")
    ask = next(d["id"] for d in dependencies.values() if [box, "submit"] in d["targets"])
    variants = next(number for number, name in names.items() if name == "compare-variants")
    fresh = next(d["id"] for d in dependencies.values() if [variants, "change"] in d["targets"])
    followers = [d for d in dependencies.values() if d.get("trigger_after") == ask]
    answers = tuple((chats.index(d["outputs"][0]), d["id"]) for d in followers if d["outputs"][0] in chats)
    opened = next(d["id"] for d in dependencies.values() if not d["inputs"] and variants in d["outputs"])
    return _Events(opened, fresh, ask, answers)


async def _talk(client: httpx.AsyncClient, events: _Events, session: Session, tokens: int) -> None:
    """A conversation, as a page has it: choose, ask, follow both columns, ask again."""
    key = f"load-{session.mark}-{time.monotonic_ns()}"
    who = ["places", ["top-2", "untuned"], "Named"]
    await _call(client, key, (events.opened, []))
    await _call(client, key, (events.fresh, [None, *who]))
    session.chats = [[] for _ in range(_ANSWER_COLUMNS)]
    for question in QUESTIONS:
        begun = time.monotonic()
        message = {"text": question.format(mark=session.mark), "files": []}
        await _call(client, key, (events.ask, [message, None, *who, tokens, 0, 1, 0]))
        wanted = [(column, number) for column, number in events.answers if column < _ANSWER_COLUMNS]
        results = await _call(client, key, *((number, [None]) for _, number in wanted))
        session.seconds.append(time.monotonic() - begun)
        for (column, _), (chat, speed) in zip(wanted, results, strict=True):
            session.chats[column] = chat if isinstance(chat, list) else session.chats[column]
            if "first token" not in str(speed):
                session.problems.append(f"{session.mark}: {speed}")


async def _call(client: httpx.AsyncClient, session: str, *calls: tuple[int, list[Any]]) -> list[list[Any]]:
    """Events through Gradio's queue, followed on the one stream that a session has: the last outputs of each."""
    waiting, results = [], dict[str, list[Any]]()
    for function, data in calls:
        body = {"fn_index": function, "session_hash": session, "data": data, "trigger_id": None}
        waiting.append((await client.post("/gradio_api/queue/join", json=body)).raise_for_status().json()["event_id"])
    async with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as response:
        async for line in response.aiter_lines():
            message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if message.get("msg") == "process_completed":
                if not message["success"]:
                    raise RuntimeError(f"an event failed: {message['output']}")
                results[message["event_id"]] = message["output"]["data"]
            if set(waiting) <= set(results):
                break
    return [results[event] for event in waiting]


class _Watch:
    """Memory and the page's response while others ask, in a thread of its own."""

    def __init__(self, address: str, pid: int):
        self.pings: list[float] = []
        self.peak = self.last = 0
        self._address, self._pid, self._end = address, pid, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with httpx.Client(base_url=self._address, timeout=120) as client:
            while not self._end.wait(1):
                begun = time.monotonic()
                client.get("/").raise_for_status()
                self.pings.append(time.monotonic() - begun)
                self.last = _memory(self._pid)
                self.peak = max(self.peak, self.last)

    def stop(self) -> None:
        self._end.set()
        self._thread.join()


def _memory(pid: int) -> int:
    """MiB that a process and its Serve replicas hold, shared pages by share (PSS)."""
    total = 0
    for process in _family(pid):
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            name = Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            continue
        if process == pid or b"ServeReplica" in name:
            total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total >> 10


def _family(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def _start(folder: Path) -> tuple[subprocess.Popen[str], int]:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "tests.browser.compare_app", str(folder / "store"), str(port), "load"]
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder / "uploads")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "up\n":
        raise SystemExit((folder / "log").read_text())
    return process, port


if __name__ == "__main__":
    main()
