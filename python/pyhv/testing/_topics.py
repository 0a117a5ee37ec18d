"""Topics in a World: crates/engine/src/topics."""

from __future__ import annotations

import json
import unicodedata
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from pyhv.testing._inbox import Event
from pyhv.testing._wire import BINARY, TEXT, check_message
from pyhv.testing.clock import SECOND
from pyhv.topics import SUBPROTOCOL, _compose, _is_pattern, _payload, matches

if TYPE_CHECKING:
    from pyhv.testing._channel import MemoryChannel
    from pyhv.testing._endpoint import Endpoint

_SIZE = 128  # of a message that is kept, beside its frame and its topic


def check_topic(topic: str, limit: float, *, pattern: bool = False) -> None:
    """Raises ValueError for a name, or where it may be one a pattern, that will not do."""
    why = None
    if not topic:
        why = "a topic has at least one character"
    elif len(topic.encode()) > limit:
        why = f"the limit is max_topic_length={limit} bytes"
    elif any(unicodedata.category(c) == "Cc" for c in topic):
        why = "a topic has no control characters"
    elif not pattern and _is_pattern(topic):
        why = "+ and # are wildcards, and this has to be the name of one topic"
    else:
        *levels, last = topic.split("/")
        if any(level != "+" and _is_pattern(level) for level in levels) or (last not in "+#" and _is_pattern(last)):
            why = "+ stands for a whole level, and # for the last ones"
    if why is not None:
        raise ValueError(f"topic={json.dumps(topic[:80], ensure_ascii=False)}: {why}")


class Keep(NamedTuple):
    """What a topic keeps."""

    messages: int
    seconds: float | None
    max_bytes: int


class Rules:
    """What topics keep, by filter; the newest that means a topic counts."""

    def __init__(self) -> None:
        self._rules: dict[str, Keep] = {}

    def set(self, topic: str, limits: tuple[int, float | None, int] | None) -> None:
        self._rules.pop(topic, None)
        if limits is not None:
            if 0 in limits:
                raise ValueError("messages, seconds and bytes are above 0: keep nothing with forget()")
            self._rules[topic] = Keep(*limits)

    def of(self, topic: str) -> Keep | None:
        return next((keep for name, keep in reversed(self._rules.items()) if matches(name, topic)), None)


class Message(NamedTuple):
    """What was published."""

    seq: int
    at: int
    topic: str
    msg: str | bytes

    @property
    def size(self) -> int:
        return len(check_message(self.msg)) + len(self.topic.encode()) + _SIZE


class Record:
    """What one topic keeps."""

    def __init__(self, lost: int) -> None:
        self.messages: deque[Message] = deque()
        #: The newest that is not kept any more, and the newest of all.
        self.lost = self.newest = lost

    def trim(self, keep: Keep, now: int) -> None:
        while self.messages:
            old = keep.seconds is not None and now - self.messages[0].at > keep.seconds * SECOND
            many = len(self.messages) > keep.messages or sum(m.size for m in self.messages) > keep.max_bytes
            if not old and not many:
                return
            self.lost = self.messages.popleft().seq


class Topics:
    """Those of one run of a server."""

    def __init__(self, endpoint: Endpoint, rules: Rules, run: int) -> None:
        self._endpoint = endpoint
        self._epoch = f"{run:016x}"
        self._seq = 0
        self._floor = 0
        self._rules = rules
        self._records: dict[str, Record] = {}
        #: Of each channel its filters, and who it is there, as JSON.
        self._filters: dict[MemoryChannel, dict[str, str | None]] = {}
        self._members: dict[str, dict[str, int]] = {}
        #: Behind which message each subscription began.
        self._began: dict[tuple[MemoryChannel, str], int] = {}

    @property
    def _limit(self) -> int:
        return int(self._endpoint.settings["max_topic_length"])

    def _position(self, seq: int) -> str:
        return f"{self._epoch}-{seq}"

    # What the program calls

    def subscribe(self, channel: MemoryChannel, topic: str, after: str | None, member: Any, confirm: bool) -> bool:
        check_topic(topic, self._limit, pattern=True)
        if member is not None:
            check_topic(topic, self._limit)
        who = None if member is None else json.dumps(member, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        if not channel.is_open or channel._ended:
            return False
        mine = self._filters.get(channel, {})
        position, complete, missed = self._position(self._seq), True, list[Message]()
        if topic not in mine:
            limit = self._endpoint.settings["max_subscriptions_per_channel"]
            if len(mine) >= limit:
                raise ValueError(
                    f"topic={json.dumps(topic[:80], ensure_ascii=False)}: it has as many subscriptions as "
                    f"max_subscriptions_per_channel={limit} allows"
                )
            position, complete, missed = self._begin(topic, after)
            self._began[channel, topic] = int(position.partition("-")[2])
        elif after not in (None, "oldest"):
            # What came before the subscription that there is it cannot bring any more.
            epoch, _, number = str(after).partition("-")
            complete = epoch == self._epoch and number.isdecimal() and int(number) >= self._began[channel, topic]
        before = mine.get(topic)
        self._filters.setdefault(channel, mine)[topic] = who = who or before
        if before != who:
            self._join(topic, who)
            self._leave(topic, before)
        if confirm:
            said = _compose("subscribed", topic, position=position, complete=complete)
            channel._conn.published(TEXT, said.encode())
        for message in missed:
            self._give(channel, message)
        return True

    def unsubscribe(self, channel: MemoryChannel, topic: str) -> bool:
        mine = self._filters.get(channel, {})
        if topic not in mine:
            return False
        del self._began[channel, topic]
        self._leave(topic, mine.pop(topic))
        return True

    def ended(self, channel: MemoryChannel) -> None:
        """A channel has ended."""
        for topic, member in self._filters.pop(channel, {}).items():
            del self._began[channel, topic]
            self._leave(topic, member)

    def publish(self, topic: str, msg: Any, exclude: MemoryChannel | None) -> str:
        payload = check_message(msg)
        check_topic(topic, self._limit)
        self._seq += 1
        message = Message(self._seq, self._endpoint.clock.ns, topic, msg if isinstance(msg, str) else payload)
        self._note(message)
        for channel in self.subscribers(topic):
            if channel is not exclude:
                self._give(channel, message)
        return self._position(self._seq)

    def subscribers(self, topic: str) -> list[MemoryChannel]:
        return [channel for channel, mine in self._filters.items() if any(matches(name, topic) for name in mine)]

    def of(self, channel: MemoryChannel) -> list[str]:
        return list(self._filters.get(channel, {}))

    def members(self, topic: str) -> list[str]:
        return list(self._members.get(topic, {}))

    def rules_changed(self) -> None:
        self._floor = self._seq
        for topic, record in list(self._records.items()):
            keep = self._rules.of(topic)
            if keep is None:
                del self._records[topic]
            else:
                record.trim(keep, self._endpoint.clock.ns)

    # Inside

    def _give(self, channel: MemoryChannel, message: Message) -> None:
        topic, msg = message.topic, message.msg
        if channel.subprotocol == SUBPROTOCOL:
            said = _compose("message", topic, position=self._position(message.seq), **_payload(msg))
            channel._conn.published(TEXT, said.encode())
        else:
            channel._conn.published(TEXT if isinstance(msg, str) else BINARY, check_message(msg))

    def _note(self, message: Message) -> None:
        keep = self._rules.of(message.topic)
        if keep is None:
            return
        record = self._records.setdefault(message.topic, Record(self._floor))
        record.messages.append(message)
        record.newest = message.seq
        record.trim(keep, message.at)
        settings = self._endpoint.settings
        while len(self._records) > settings["max_topics"] or self._bytes() > settings["max_history_bytes"]:
            oldest = min(self._records, key=lambda topic: self._records[topic].newest)
            self._floor = max(self._floor, self._records.pop(oldest).newest)

    def _bytes(self) -> int:
        return sum(message.size for record in self._records.values() for message in record.messages)

    def _begin(self, topic: str, after: str | None) -> tuple[str, bool, list[Message]]:
        """Behind what a subscription begins, whether nothing is missing, and what was missed."""
        if after is None:
            return self._position(self._seq), True, []
        epoch, _, number = after.partition("-")
        known = epoch == self._epoch and number.isdecimal() and int(number) <= self._seq
        seq = int(number) if known else 0
        if _is_pattern(topic):
            records = {name: record for name, record in self._records.items() if matches(topic, name)}
            complete = seq >= self._floor
        else:
            records = {topic: self._records[topic]} if topic in self._records else {}
            unknown = self._seq if self._rules.of(topic) is None else self._floor
            complete = bool(records) or seq >= unknown
        for name, record in records.items():
            keep = self._rules.of(name)
            assert keep is not None, "what is not to be kept was forgotten"
            record.trim(keep, self._endpoint.clock.ns)
            complete &= seq >= record.lost
        missed = sorted(m for record in records.values() for m in record.messages if m.seq > seq)
        complete = after == "oldest" or (known and complete)
        if not (known and complete):
            seq = missed[0].seq - 1 if missed else self._seq
        return self._position(seq), complete, missed

    def _join(self, topic: str, member: str | None) -> None:
        if member is not None:
            members = self._members.setdefault(topic, {})
            members[member] = members.get(member, 0) + 1
            if members[member] == 1:
                self._tell(topic, member, True)

    def _leave(self, topic: str, member: str | None) -> None:
        if member is not None:
            members = self._members[topic]
            members[member] -= 1
            if members[member] == 0:
                del members[member]
                self._tell(topic, member, False)

    def _tell(self, topic: str, member: str, joined: bool) -> None:
        self._endpoint.inbox.push(Event("presence", value=(topic, member, joined), size=len(topic) + len(member)))
