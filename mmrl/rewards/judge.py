"""Ask a judge: an OpenAI-compatible server or a local model behind one interface, `async (messages) -> text`.

A judge that cannot answer raises `JudgeUnavailable` (`BudgetSpent` if it may not), never a made-up score: `Rewards`
then stops the run with a checkpoint, or drops the part for the whole group. An answer that the server refuses as such
(HTTP 400, 413, 422: too long, filtered) is the fault of that answer and raises `RequestRefused`, which `Rewards` counts
as an exception. Rules:

1. Refused connections, silence, half replies, garbage and the statuses 408, 409, 425, 429 and 5xx are retried with
   exponential backoff and jitter, at most `attempts` times and not beyond `deadline`; Retry-After is obeyed, by all
   requests of this judge, up to `posting.LONGEST_WAIT`. Any other status is reported at once.
2. `deadline` counts from the call and includes waiting for a free place, so it bounds a whole step.
3. Equal requests are sent once. The cache key hashes the model, the sampling, `version`, the messages and the digest
   of their prompt (`judge_prompts`), not the address. With `replay` nothing is sent at all.
4. The budget is checked before sending, with an estimate for everything under way; a reply without a usage report,
   or with one that cannot be true, is booked by the estimate. Requests that got no reply are not booked: their cost is
   unknown.
5. The key appears in no log, error or repr, not even in part; nor do credentials of an address.

Source of the contract: our rules for Perception-R1's judge (whose official client ends the run with an AttributeError
when the server is down).
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from mmrl.ground.declared import FREE
from mmrl.ground.posting import Reply, post, redact, shown
from mmrl.ground.require import require
from mmrl.rewards.judge_ledger import Budget, Ledger, Spent, request_key
from mmrl.rewards.judge_prompts import JudgePrompt
from mmrl.rewards.worker import Unavailable

__all__ = [
    "Ask",
    "Budget",
    "BudgetSpent",
    "Judge",
    "JudgeUnavailable",
    "LocalJudge",
    "NotRecorded",
    "RequestRefused",
    "Spent",
]

Message = Mapping[str, Any]
Chat = Sequence[Message]
Usage = tuple[int, int]
"""Prompt and answer tokens."""
_Place = tuple[int, str]
"""Event loop and content of a request that is under way."""
_Question = tuple[Chat, asyncio.Future[str]]
RETRIED = frozenset({408, 409, 425, 429})
REFUSED = frozenset({400, 413, 422})
SAMPLING: Mapping[str, Any] = {"temperature": 0.0, "max_tokens": 512}
"""How a judge is sampled unless somebody says otherwise."""
IMAGE_TOKENS = 1500
"""Estimate of the tokens of one image in a request."""
MOST_TOKENS = 10**8
"""More than any model reads or writes at once: a server that reports more has miscounted."""


class JudgeUnavailable(Unavailable):
    """The judge gave no answer after all attempts."""


class BudgetSpent(JudgeUnavailable):
    """The budget does not allow another request."""


class NotRecorded(JudgeUnavailable):
    """Verdicts are replayed, and there is none for this request."""


class RequestRefused(ValueError):
    """The server refuses this request, whoever sends it and whenever."""


class Ask(Protocol):
    """A judge as rewards see it."""

    async def __call__(self, messages: Sequence[Message]) -> str: ...


@dataclass(eq=False)
class Judge:
    """An OpenAI-compatible chat endpoint. Reward functions that use it are `async` and run in the trainer's process."""

    url: str = field(metadata=FREE)
    """Base address, for example http://localhost:8000/v1."""
    model: str
    key: str | None = field(default=None, repr=False, metadata=FREE)
    """API key, sent as a bearer token."""
    sampling: Mapping[str, Any] = field(default_factory=lambda: dict(SAMPLING))
    """Further fields of the request body."""
    version: str = ""
    """Part of the cache key: change it when the meaning of a prompt changes without its text."""
    cache: Path | None = field(default=None, metadata=FREE)
    """SQLite file for answers and spending; None keeps both in memory."""
    budget: Budget = field(default_factory=Budget, metadata=FREE)
    concurrency: int = field(default=32, metadata=FREE)
    """Requests under way at once."""
    attempts: int = field(default=5, metadata=FREE)
    request_timeout: float = field(default=60.0, metadata=FREE)
    """Seconds for one attempt."""
    deadline: float = field(default=300.0, metadata=FREE)
    """Seconds for one question, waiting and retries included."""
    backoff: float = field(default=0.5, metadata=FREE)
    """Seconds before the first retry (half to all of it, by chance); doubled each time, at most 30."""
    replay: bool = field(default=False, metadata=FREE)
    """Answer from the cache alone and send nothing: what it does not hold is an outage."""

    def __post_init__(self) -> None:
        if not _is_address(self.url):
            # Redacted by hand: a wrong address may hold a password.
            raise ValueError(
                f"Judge.url is {redact(self.url, self.key)!r}; give http(s)://host[:port]/v1, credentials as `key`."
            )
        # A line end in a key would end the header; the message must not show the key.
        if self.key is not None and not re.fullmatch(r"[!-~]+", self.key):
            raise ValueError(
                "Judge.key is empty or holds spaces, line ends or other characters; strip what was read."
            )
        require(
            self,
            concurrency=(self.concurrency > 0, "positive"),
            attempts=(self.attempts > 0, "positive"),
            request_timeout=(self.request_timeout > 0, "positive"),
            deadline=(self.deadline > 0, "positive"),
            backoff=(self.backoff > 0, "positive"),
        )
        if self.replay and (self.cache is None or not self.cache.is_file()):
            raise ValueError(
                f"Judge.replay answers from recorded verdicts, and Judge.cache is {self.cache}, which is no file; name "
                "the cache of the run that asked the server."
            )
        self.url = self.url.rstrip("/")
        self._ledger = Ledger(self.cache)
        self._tokens_reserved = 0
        self._money_reserved = 0.0
        self._counts: Counter[str] = Counter()
        # Per event loop, weakly: a semaphore belongs to the loop it was used in, and loops are replaced.
        self._places: weakref.WeakKeyDictionary[Any, asyncio.Semaphore] = (
            weakref.WeakKeyDictionary()
        )
        self._under_way: dict[_Place, asyncio.Task[str]] = {}
        self._quiet_until = 0.0
        # Unseeded on purpose: jitter must differ between processes that ask one server, and decides no bit of a run.
        self._chance = random.Random()

    def __repr__(self) -> str:
        return f"Judge({redact(self.url, self.key)!r}, {self.model!r})"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Judge stays in the trainer's process (cache, budget, key); make the reward function async"
        )

    async def __call__(self, messages: Sequence[Message]) -> str:
        """The judge's text. Raises JudgeUnavailable, BudgetSpent or RequestRefused."""
        body = {
            **self.sampling,
            "model": self.model,
            "messages": [dict(message) for message in messages],
        }
        if vote := getattr(messages, "vote", 0):
            body["seed"] = vote
        key, *earlier = self._keys(body, getattr(messages, "prompt", None))
        for known in (key, *earlier):
            if (stored := self._ledger.find(known)) is not None:
                self._counts["judge/cached"] += 1
                return stored
        if self.replay:
            self._counts["judge/unavailable"] += 1
            raise NotRecorded(
                f"The judge {self!r} only replays verdicts, and {self.cache} holds none for this request (key "
                f"{key[:16]}…). Ask the server again without replay, or take the model, the sampling and the prompts "
                "with which the verdicts were recorded."
            )
        # A task cannot be awaited from another loop, so equal questions meet within one only.
        place = (id(asyncio.get_running_loop()), key)
        task = self._under_way.get(place)
        if task is None:
            task = asyncio.ensure_future(self._ask(body, key))
            self._under_way[place] = task
            task.add_done_callback(lambda done: self._finished(place, done))
        # Shielded: whoever stops waiting must not cancel the request under others that wait for it.
        return await asyncio.shield(task)

    @property
    def spent(self) -> Spent:
        """Tokens and money spent, through the cache file if there is one."""
        return self._ledger.spent()

    def metrics(self) -> dict[str, float]:
        """Counts since the last call, and what was spent in all."""
        spent = self.spent
        values: dict[str, float] = dict(self._counts)
        self._counts.clear()
        values["judge/tokens_in"] = spent.tokens_in
        values["judge/tokens_out"] = spent.tokens_out
        values["judge/money"] = spent.money
        return {name: float(value) for name, value in values.items()}

    def close(self) -> None:
        """Close the cache file."""
        self._ledger.close()

    def _keys(self, body: Mapping[str, Any], prompt: JudgePrompt | None) -> list[str]:
        """The key of a request, and one under which earlier versions of mmrl may have kept its answer."""
        content = {**body, "version": self.version}
        if prompt is None:
            return [request_key(content)]
        keys = [request_key({**content, "prompt": prompt.digest})]
        # Before prompts were files, the messages alone told them apart.
        return [*keys, request_key(content)] if prompt.version == 1 else keys

    def _finished(self, place: _Place, done: asyncio.Task[str]) -> None:
        self._under_way.pop(place, None)
        # Looked at, so that asyncio reports no lost exception: whoever asked has seen it, or has stopped waiting.
        if not done.cancelled():
            done.exception()

    async def _ask(self, body: Mapping[str, Any], key: str) -> str:
        """Reserve, send, book, store. The reservation ends with the request, whatever becomes of it."""
        estimate = _estimate(body)
        tokens, money = sum(estimate), self.budget.cost(*estimate)
        self._reserve(tokens, money)
        try:
            text, usage = await self._persist(json.dumps(body).encode())
            tokens_in, tokens_out = usage or estimate
            price = self.budget.cost(tokens_in, tokens_out)
            # Booked before it is stored: a crash between the two costs a question, never hides its price.
            self._ledger.spend(tokens_in, tokens_out, price)
            self._ledger.store(key, text)
            return text
        except JudgeUnavailable:
            self._counts["judge/unavailable"] += 1
            raise
        finally:
            self._tokens_reserved -= tokens
            self._money_reserved -= money

    def _reserve(self, tokens: int, money: float) -> None:
        """Keep a request's estimate aside. Raises BudgetSpent if all that is under way might pass the budget."""
        spent = self.spent
        all_tokens = spent.tokens_in + spent.tokens_out + self._tokens_reserved + tokens
        all_money = spent.money + self._money_reserved + money
        if not self.budget.allows(all_tokens, all_money):
            self._counts["judge/unavailable"] += 1
            raise BudgetSpent(
                f"The budget of the judge {self!r} ({self.budget}) is spent: {spent}, and a further request of about "
                f"{tokens} tokens might pass it. Raise the budget to go on."
            )
        self._tokens_reserved += tokens
        self._money_reserved += money

    async def _persist(self, body: bytes) -> tuple[str, Usage | None]:
        """Text and usage of the first good reply. Raises JudgeUnavailable, RequestRefused."""
        end = time.monotonic() + self.deadline
        trouble = "no attempt was made"
        for attempt in range(self.attempts):
            try:
                reply = await self._attempt(body, end)
                if reply.status == 200:
                    return _content(reply)
                trouble = f"HTTP {reply.status}: {shown(reply.body, self.key)}"
                if reply.status in REFUSED:
                    raise RequestRefused(f"The judge {self!r} refuses the request: {trouble}")
                if reply.status not in RETRIED and reply.status < 500:
                    break
                # For all requests of this judge: the server is overloaded by all of them together.
                if wait := reply.retry_after():
                    self._quiet_until = max(self._quiet_until, time.monotonic() + wait)
            except TimeoutError:
                trouble = "no reply in time"
            except OSError as error:
                trouble = f"{type(error).__name__}: {shown(str(error), self.key)}"
            except Garbage as error:
                self._counts["judge/malformed"] += 1
                trouble = f"the reply is no chat completion: {shown(str(error), self.key)}"
            resume = max(time.monotonic() + self._pause(attempt), self._quiet_until)
            # No sleep into a deadline that the next attempt could not meet.
            if resume >= end or attempt + 1 == self.attempts:
                break
            self._counts["judge/retries"] += 1
            await asyncio.sleep(resume - time.monotonic())
        raise JudgeUnavailable(
            f"The judge {self!r} gave no answer after {attempt + 1} attempts; the last: {trouble}"
        )

    def _pause(self, attempt: int) -> float:
        """Seconds before the next attempt: doubled each time, half to all of it by chance, at most 30."""
        jitter = self._chance.uniform(0.5, 1.0)
        return min(self.backoff * 2**attempt * jitter, 30.0)

    async def _attempt(self, body: bytes, end: float) -> Reply:
        """One request when a place is free and the server wants requests. Raises OSError, TimeoutError."""
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        places = self._places.setdefault(
            asyncio.get_running_loop(), asyncio.Semaphore(self.concurrency)
        )
        left = max(end - time.monotonic(), 0.0)
        # The time limit is entered before the place, so that waiting for a place counts as well.
        async with asyncio.timeout(left), places:
            quiet = max(self._quiet_until - time.monotonic(), 0.0)
            await asyncio.sleep(quiet)
            self._counts["judge/requests"] += 1
            return await post(
                f"{self.url}/chat/completions", headers, body, self.request_timeout
            )


class LocalJudge:
    """A function that answers several conversations at once (a local model, or a rule), as a judge.

    Questions that come together are answered together, on a thread, one batch at a time. `label` names the kind in the
    metrics ("local", or "rule" for a stand-in whose results are no reproduction of a judged run).
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Chat]], Sequence[str]],
        label: str = "local",
        batch_size: int = 32,
    ) -> None:
        self._answer, self.label, self._size = answer, label, batch_size
        self._waiting: list[_Question] = []
        self._worker: asyncio.Task[None] | None = None
        self._counts: Counter[str] = Counter()

    async def __call__(self, messages: Sequence[Message]) -> str:
        """The answer. Raises JudgeUnavailable if the function raises or leaves answers out."""
        loop = asyncio.get_running_loop()
        if self._worker is not None and self._worker.get_loop() is not loop:
            # An earlier loop was given up, with all that waited there.
            self._worker = None
            self._waiting = []
        future: asyncio.Future[str] = loop.create_future()
        self._waiting.append((messages, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.ensure_future(self._work())
        return await future

    def metrics(self) -> dict[str, float]:
        """Counts since the last call."""
        values = {
            f"judge/{self.label}_{name}": float(count) for name, count in self._counts.items()
        }
        self._counts.clear()
        return values

    async def _work(self) -> None:
        await asyncio.sleep(0)  # let the questions of this step arrive
        while self._waiting:
            taken = self._waiting[: self._size]
            self._waiting = self._waiting[self._size :]
            self._counts["requests"] += len(taken)
            try:
                # On a thread: a model that computes must not stop the coroutines that will ask next.
                texts = await asyncio.to_thread(self._answer, [chat for chat, _ in taken])
                if len(texts) != len(taken):
                    raise ValueError(f"{len(texts)} answers to {len(taken)} questions")
            except Exception as error:  # whatever a model or a rule raises
                self._counts["unavailable"] += len(taken)
                for _, future in taken:
                    if not future.done():  # done already if whoever asked has given up
                        future.set_exception(
                            JudgeUnavailable(f"The {self.label} judge failed: {error!r}")
                        )
                continue
            for (_, future), text in zip(taken, texts, strict=True):
                if not future.done():
                    future.set_result(text)


class Garbage(Exception):
    """A reply with status 200 that is no chat completion."""


def _is_address(url: str) -> bool:
    """Is it http(s)://host… without credentials, which belong into `key`?"""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return False
    # Anywhere: behind a slash in a password it would not be found in `netloc`.
    return "@" not in url


def _content(reply: Reply) -> tuple[str, Usage | None]:
    """The text of a chat completion and its usage, if it reports one. Raises Garbage."""
    try:
        parsed = json.loads(reply.body)
        text = parsed["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise TypeError(f"the content is a {type(text).__name__}")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Garbage(f"{error!r} in {reply.body[:4096].decode(errors='replace')}") from error
    # A judge may write half a surrogate pair, which no file and no other judge takes.
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole, _usage(parsed)


def _usage(parsed: Mapping[str, Any]) -> Usage | None:
    """Prompt and answer tokens that the server reports; None unless both are whole numbers that can be true."""
    usage = parsed.get("usage")
    if not isinstance(usage, dict):
        return None
    counts: list[int] = []
    for name in ("prompt_tokens", "completion_tokens"):
        count = usage.get(name)
        # Some servers send null, or -1 for "not counted", or what no model can read: then the estimate is booked.
        if type(count) is not int or not 0 <= count <= MOST_TOKENS:
            return None
        counts.append(count)
    return counts[0], counts[1]


def _estimate(body: Mapping[str, Any]) -> Usage:
    """Prompt and answer tokens of a request, rather too many than too few."""
    tokens = 0
    for message in body["messages"]:
        content = message.get("content") or ""
        parts = [{"text": content}] if isinstance(content, str) else content
        tokens += 8  # role and separators of a chat template
        for part in parts:
            # A token is about 4 characters of English, fewer of other languages and of code: 3 is on the safe side.
            tokens += len(part["text"]) // 3 + 1 if "text" in part else IMAGE_TOKENS
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    return tokens, int(limit) if limit else 1024
