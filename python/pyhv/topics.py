"""Topics: what a server and a client have of them beside the native side; docs/topics.md has what they speak."""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any

from pyhv import _native
from pyhv._native import WebSocketChannel

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["ClientTopics", "ServerTopics"]

#: What a client offers, and a server agrees to, when clients ask for topics themselves.
SUBPROTOCOL = "pyhv.topics.v1"

_WILDCARDS = ("+", "#")


def _is_pattern(topic: str) -> bool:
    return any(wildcard in topic for wildcard in _WILDCARDS)


def matches(pattern: str, topic: str) -> bool:
    """Whether a filter of MQTT 3.1.1 section 4.7 means a topic; as crates/engine/src/topics/name.rs."""
    if topic.startswith("$") and pattern.startswith(_WILDCARDS):
        return False
    levels = topic.split("/")
    for index, wanted in enumerate(pattern.split("/")):
        if wanted == "#":
            return True
        if index == len(levels) or wanted not in ("+", levels[index]):
            return False
    return index + 1 == len(levels)


def may_ask(msg: str | bytes) -> bool:
    """Whether a message may be a text of the convention: the look before it is parsed."""
    return isinstance(msg, str) and msg.startswith("{") and '"pyhv"' in msg[:69]


def _compose(kind: str, topic: str, /, **members: Any) -> str:
    """A text of the convention: "pyhv" comes first, by which it is known."""
    return json.dumps({"pyhv": kind, "topic": topic, **members}, ensure_ascii=False, separators=(",", ":"))


def _payload(msg: str | Buffer) -> dict[str, str]:
    if isinstance(msg, str):
        return {"text": msg}
    return {"base64": base64.b64encode(msg).decode("ascii")}


def _message(parsed: dict[str, Any]) -> str | bytes | None:
    """What a text of the convention carries; None: nothing that it could."""
    text, encoded = parsed.get("text"), parsed.get("base64")
    if isinstance(text, str):
        return text
    if isinstance(encoded, str):
        try:
            return base64.b64decode(encoded, validate=True)
        except binascii.Error:
            pass
    return None


def _parse(text: str) -> tuple[str, str, dict[str, Any]] | None:
    """What a text of the convention says, of which topic, and all of it; None for any other text."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict):
        return None
    what, topic = parsed.get("pyhv"), parsed.get("topic")
    return (what, topic, parsed) if isinstance(what, str) and isinstance(topic, str) else None


class ServerTopics(_native.Server):
    """The part of HvWebServer that is about topics."""

    _topics_enabled = False
    _topic_patterns = False

    # What a program overrides; runs inside tick(), on that thread.

    def on_subscribe(self, channel: WebSocketChannel, topic: str) -> bool | str | dict[str, Any] | None:
        """A client asks for a topic, after `enable_topics`: return True to let it. Without an override it is refused.

        A str or dict lets it too, and is the member that the client is there, as with `member=` of `subscribe`. What
        the program subscribes by itself is not asked about; a client that asks for it as well goes on from there.
        """
        return False

    def on_publish(self, channel: WebSocketChannel, topic: str, msg: str | bytes) -> bool | None:
        """A client wants to publish, after `enable_topics`: return True to let it. Without an override it is refused.

        The message goes to every subscriber, the client too if it is one. A program that wants to change it publishes
        itself and returns None; then the client is told that it was refused, unless it is sent something else.
        """
        return False

    def on_join(self, topic: str, member: Any) -> None:
        """A member has come to a topic: the first of its channels has subscribed with `member=`."""

    def on_leave(self, topic: str, member: Any) -> None:
        """A member has left a topic: the last of its channels there has unsubscribed or ended."""

    def on_backplane(self, state: str) -> None:
        """How it stands with the engine of `start(backplane=...)` has changed.

        :param state: "connected": this process hears and is heard, and has what topics keep; "lost": the engine is
            away, or was never there, and is tried again. Why is in the log.
        """

    def enable_topics(self, *, patterns: bool = False) -> None:
        """Lets clients ask for topics themselves, in the convention of docs/topics.md, from the next `start` on.

        It adds "pyhv.topics.v1" to the server's subprotocols. To a channel that has agreed on it publishes go with
        topic and position; what else it sends and is sent stays the program's own. `on_subscribe` and `on_publish`
        decide.

        :param patterns: whether clients may ask for patterns; `on_subscribe` gets them as they are.

        Raises RuntimeError while the server runs.
        """
        if self.is_running:
            raise RuntimeError("enable_topics() while the server runs: what it speaks is settled at start()")
        self._topics_enabled = True
        self._topic_patterns = patterns

    def keep(self, topic: str, *, messages: int = 100, seconds: float | None = None, max_bytes: int = 1 << 20) -> None:
        """Keeps the last messages of a topic, for subscribers that come back or ask for them.

        :param topic: a name or a pattern: then each topic that it means keeps so much. Of several that mean a topic
            the one given last counts.
        :param messages: how many.
        :param seconds: none older than this; None: of any age.
        :param max_bytes: the most that one topic keeps, 128 bytes for each message included.

        All topics together keep `max_history_bytes`, of `max_topics` topics. Begins with what is published next, and
        holds until `forget`, also for later runs; what is kept ends with the run. Raises ValueError for a name or
        number that will not do. Any thread, before or after `start`.
        """
        self._keep(topic, (messages, seconds, max_bytes))

    def forget(self, topic: str) -> None:
        """Takes back a `keep`, named as it was made. Any thread."""
        self._keep(topic)

    def presence(self, topic: str) -> list[Any]:
        """The members of a topic, each once, in the order in which they came: `member=` as JSON gives it back.

        Any thread."""
        return [json.loads(member) for member in self._members(topic)]

    def _subprotocols(self, names: list[str] | str) -> list[str] | str:
        if self._topics_enabled and not isinstance(names, str) and SUBPROTOCOL not in names:
            return [*names, SUBPROTOCOL]
        return names

    # Called by the native tick

    def _on_presence(self, topic: str, member: str, joined: bool) -> None:
        (self.on_join if joined else self.on_leave)(topic, json.loads(member))

    def _on_topics(self, channel: WebSocketChannel, text: str) -> bool:
        """A text that may be of the convention; False: it is not."""
        parsed = _parse(text)
        if parsed is None:
            return False
        what, topic, members = parsed
        reason: str | None
        if what == "subscribe":
            reason = self._asked_to_subscribe(channel, topic, members.get("after"))
        elif what == "unsubscribe":
            channel.unsubscribe(topic)
            channel.send(_compose("unsubscribed", topic))
            return True
        elif what == "publish":
            reason = self._asked_to_publish(channel, topic, _message(members))
        else:
            reason = f"there is no {what[:40]!r}"
        if reason is not None:
            channel.send(_compose("refused", topic[:256], what=what[:40], reason=reason))
        return True

    def _asked_to_subscribe(self, channel: WebSocketChannel, topic: str, after: Any) -> str | None:
        """Why not; None: it was done."""
        if not (after is None or isinstance(after, str)):
            return "after is a string"
        if not self._topic_patterns and _is_pattern(topic):
            return "no wildcards"
        allowed = self.on_subscribe(channel, topic)
        if not allowed:
            return "not allowed"
        return channel._ask(topic, after, None if allowed is True else allowed)

    def _asked_to_publish(self, channel: WebSocketChannel, topic: str, msg: str | bytes | None) -> str | None:
        if msg is None:
            return "neither text nor base64"
        if not self.on_publish(channel, topic, msg):
            return "not allowed"
        try:
            published = self.publish(topic, msg)
        except ValueError as error:
            return str(error)
        return "not now" if published is None and self.is_running else None


def _number(position: str | None) -> tuple[str, int]:
    """The sequence of a position and the number in it; "" for what is none yet."""
    epoch, _, number = (position or "").partition("-")
    return (epoch, int(number)) if number.isdecimal() else ("", 0)


class ClientTopics(_native.WebSocketClient):
    """The part of HvWebSocketClient that is about topics of a server with `enable_topics`."""

    #: By name or pattern, the position of the last message that came, or of where to begin.
    _topics: dict[str, str | None]
    #: Given up, and not confirmed yet.
    _topics_left: set[str]

    # What a program overrides; runs inside tick(), on that thread.

    def on_topic(self, topic: str, msg: str | bytes) -> None:
        """A message was published to a topic that the client, or the server for it, has subscribed to."""

    def on_topic_gap(self, topic: str) -> None:
        """Messages are missing between the last one and the next: the server does not keep them any more."""

    def on_topic_refused(self, topic: str, reason: str) -> None:
        """The server does not let the client subscribe or publish, or does not speak of topics at all."""

    def subscribe(self, topic: str, *, after: str | None = None) -> None:
        """Subscribes, now or when the client is connected with `topics=True`, and again on each connection after it.

        After a reconnect the server is asked for what was missed: each message comes to `on_topic` once, in order, or
        `on_topic_gap` says that some are lost.

        :param topic: a name; a pattern if the server lets clients have them.
        :param after: None begins with what is published next; "oldest" with what the server keeps; a position behind
            that message, such as `topic_position` has given to an earlier run of the program.

        Any thread; never blocks.
        """
        self._topics_left.discard(topic)
        self._topics[topic] = after
        self._ask_for(topic)

    def unsubscribe(self, topic: str) -> None:
        """Ends a subscription; nothing more of it comes. Any thread; never blocks."""
        if topic in self._topics:
            del self._topics[topic]
            if self._speaks():
                self._topics_left.add(topic)
                self.send(_compose("unsubscribe", topic))

    def publish(self, topic: str, msg: str | Buffer) -> bool:
        """Asks the server to publish a message; False: there is no connection that speaks of topics.

        Any thread; never blocks."""
        return self._speaks() and self.send(_compose("publish", topic, **_payload(msg)))

    @property
    def topics(self) -> list[str]:
        """What it has subscribed to, in that order, as a new list."""
        return list(self._topics)

    def topic_position(self, topic: str) -> str | None:
        """Where the last message of a subscription stood, to resume behind it in another run.

        None before the first answer. Any thread."""
        position = self._topics.get(topic)
        return position if _number(position)[0] else None

    def _speaks(self) -> bool:
        return self.is_connected and self.subprotocol == SUBPROTOCOL

    def _ask_for(self, topic: str) -> None:
        if self._speaks():
            after = self._topics.get(topic)
            self.send(_compose("subscribe", topic, **({} if after is None else {"after": after})))

    # Called by the native tick

    def _on_topics_open(self) -> None:
        """A connection is open: asks for everything again."""
        self._topics_left.clear()
        for topic in self.topics:
            if self._speaks():
                self._ask_for(topic)
            else:
                self.on_topic_refused(topic, f"the server does not speak {SUBPROTOCOL}")

    def _on_topics(self, text: str) -> bool:
        """A text that may be of the convention; False: it is not."""
        parsed = _parse(text)
        if parsed is None:
            return False
        what, topic, members = parsed
        position = members.get("position")
        if what == "message" and (position is None or isinstance(position, str)):
            msg = _message(members)
            if msg is not None and self._is_new(topic, position):
                self.on_topic(topic, msg)
        elif what == "subscribed" and isinstance(position, str):
            self._subscribed(topic, position, members.get("complete") is not False)
        elif what == "unsubscribed":
            self._topics_left.discard(topic)
        elif what == "refused":
            if members.get("what") == "subscribe":
                self._topics.pop(topic, None)
            self.on_topic_refused(topic, str(members.get("reason", "")))
        else:
            return False
        return True

    def _is_new(self, topic: str, position: str | None) -> bool:
        """Notes a message; False for one that came before, or that nobody wants any more.

        Without a position it has no place among the others, and comes once."""
        mine = [topic] if topic in self._topics else []
        mine += [name for name in self._topics if _is_pattern(name) and matches(name, topic)]
        if not mine:
            return not any(matches(name, topic) for name in self._topics_left)
        if position is None:
            return True
        epoch, number = _number(position)
        behind = [
            name for name in mine if _number(self._topics[name]) < (epoch, number) or self._of_another(name, epoch)
        ]
        for name in behind:
            self._topics[name] = position
        return bool(behind)

    def _of_another(self, name: str, epoch: str) -> bool:
        return _number(self._topics[name])[0] != epoch

    def _subscribed(self, topic: str, position: str, complete: bool) -> None:
        if topic not in self._topics:
            return
        epoch, number = _number(position)
        # What came for another subscription meanwhile does not come back.
        if not complete or self._of_another(topic, epoch) or number > _number(self._topics[topic])[1]:
            self._topics[topic] = position
        if not complete:
            self.on_topic_gap(topic)
