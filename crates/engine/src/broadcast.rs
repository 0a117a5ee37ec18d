//! The broadcasts of one round of the pump.
//!
//! A broadcast is not queued on a thousand connections when its turn in the log comes. It is noted here, and a connection
//! *hears* what has been noted at the end of the round, or before another command of the round is applied to it: so each
//! connection sees the program's calls in their order, and the walk over all of them happens once a round, however many
//! broadcasts there are. A connection with nothing in the way gets the frames of the whole round, joined once for all, in one
//! write straight from there, without a queue of its own. What is published to a topic goes the same way for those who have
//! subscribed (`topics::fanout`).

use crate::connection::Connection;
use crate::courtesy::Courtesy;
use crate::endpoint::Endpoint;
use crate::runtime::IoThread;
use crate::stats::Sent;
use crate::topics::Run;
use crate::wire;
use crate::wire::deflate::{CompressParams, compress_shared, worth_compressing};
use bytes::Bytes;
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;

/// Up to this size all frames of a round are joined: then copying them once costs less than a thousand vectors of slices.
const JOINED: usize = 64 << 10;
/// Beyond it they are while each of them is small: the same as `outbuf` copies.
const SMALL: usize = 2 << 10;
/// Messages of a round that are not for a connection, up to which it still gets the others in one write.
const GAPS: usize = 15;
/// Connections taken from the register under one lock; few enough to be in the cache still when they are written to.
const AT_A_TIME: usize = 32;

/// A message for many.
pub(crate) struct Broadcast {
    pub(crate) opcode: wire::Opcode,
    pub(crate) payload: Bytes,
    /// As an uncompressed frame.
    pub(crate) plain: Bytes,
    /// The channel that does not get it.
    exclude: Option<u32>,
    /// A newer one with the same key takes its place.
    pub(crate) key: Option<Bytes>,
    /// How many places it has taken.
    pub(crate) replaced: u64,
}

impl Broadcast {
    /// `plain`: the message as an uncompressed frame whose payload begins at `payload`.
    pub(crate) fn new(
        opcode: wire::Opcode,
        plain: Bytes,
        payload: usize,
        exclude: Option<u32>,
        key: Option<Bytes>,
    ) -> Self {
        Self { opcode, payload: plain.slice(payload..), plain, exclude, key, replaced: 0 }
    }

    /// The frame for all who agreed on `params`, without takeover.
    fn frame(&self, params: Option<CompressParams>) -> Bytes {
        let mut deflated = Vec::new();
        let params = params.filter(|_| worth_compressing(self.payload.len()));
        if !params.is_some_and(|params| compress_shared(params, &self.payload, &mut deflated)) {
            return self.plain.clone();
        }
        let mut frame = Vec::with_capacity(wire::MAX_HEADER + deflated.len());
        wire::encode_frame_rsv1(&mut frame, self.opcode, true, &deflated, None);
        frame.into()
    }
}

/// The round's frames for all connections with the same compression.
struct Variant {
    params: Option<CompressParams>,
    /// Of the first messages, as many as somebody needed.
    frames: Vec<Bytes>,
    /// All of them in a row, once somebody asked; none where they are better left alone.
    joined: Option<Option<Joined>>,
}

struct Joined {
    bytes: Bytes,
    /// Where each frame ends.
    ends: Vec<usize>,
}

/// What one connection gets of a round, ready to be written.
pub(crate) struct Share<'a> {
    joined: &'a Joined,
    frames: &'a [Bytes],
    /// The messages that are not for it, in order.
    gaps: &'a [(u32, usize)],
    sent: Sent,
}

impl Share<'_> {
    /// Its length.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        let gaps: usize = self.gaps.iter().map(|&(_, index)| self.frames[index].len()).sum();
        self.joined.bytes.len() - gaps
    }

    /// The messages in it.
    pub(crate) fn sent(&self) -> Sent {
        self.sent
    }

    /// Writes as much as the socket takes in one call.
    #[inline]
    pub(crate) fn write(&self, stream: Pin<&mut impl AsyncWrite>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.gaps.is_empty() {
            stream.poll_write(cx, &self.joined.bytes)
        } else {
            self.write_around_gaps(stream, cx)
        }
    }

    /// Apart from the case without gaps, which is most frequent and needs no room for slices.
    #[inline(never)]
    fn write_around_gaps(&self, stream: Pin<&mut impl AsyncWrite>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Joined { bytes, ends } = self.joined;
        let mut slices = [IoSlice::new(&[]); GAPS + 1];
        let (mut used, mut start) = (0, 0);
        let gaps = self.gaps.iter().map(|&(_, index)| (ends[index] - self.frames[index].len(), ends[index]));
        for (end, next) in gaps.chain([(bytes.len(), 0)]) {
            if start < end {
                slices[used] = IoSlice::new(&bytes[start..end]);
                used += 1;
            }
            start = next;
        }
        stream.poll_write_vectored(cx, &slices[..used])
    }

    /// The frames that it consists of.
    pub(crate) fn frames(&self) -> impl Iterator<Item = &Bytes> {
        let mut gaps = self.gaps.iter().map(|&(_, index)| index).peekable();
        let frames = self.frames.iter().enumerate();
        frames.filter(move |&(index, _)| gaps.next_if_eq(&index).is_none()).map(|(_, frame)| frame)
    }
}

/// What one endpoint's connections hear in this round; or some of them, what was published to a topic.
pub(crate) struct Room {
    endpoint: Arc<Endpoint>,
    messages: Vec<Broadcast>,
    /// Channels that do not get all of it, and which message not; sorted once the round is over.
    excluded: Vec<(u32, usize)>,
    /// Length of all frames, uncompressed.
    len: usize,
    /// Length of all contents.
    content: usize,
    /// Few: browsers agree on one set of parameters.
    variants: Vec<Variant>,
    /// Where the newest message of each key is.
    keys: HashMap<Bytes, usize>,
    /// How many messages somebody has heard already: they stay as they are.
    heard: usize,
}

impl Room {
    fn new(endpoint: Arc<Endpoint>) -> Self {
        let (messages, excluded, variants, keys) = (Vec::new(), Vec::new(), Vec::new(), HashMap::new());
        Self { endpoint, messages, excluded, len: 0, content: 0, variants, keys, heard: 0 }
    }

    /// For messages that not all connections get: to have their frames made once.
    pub(crate) fn of(endpoint: &Arc<Endpoint>, messages: impl IntoIterator<Item = Broadcast>) -> Self {
        let mut room = Self::new(Arc::clone(endpoint));
        messages.into_iter().for_each(|message| room.note(message));
        room.excluded.sort_unstable();
        room
    }

    /// How many messages there are so far.
    pub(crate) fn count(&self) -> usize {
        self.messages.len()
    }

    /// Length of all frames, uncompressed.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether there are messages with a key.
    pub(crate) fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// How many messages for this channel gave way to newer ones.
    pub(crate) fn replaced(&self, channel: u32) -> u64 {
        if !self.has_keys() {
            return 0;
        }
        let messages = self.messages.iter().filter(|message| message.exclude != Some(channel));
        messages.map(|message| message.replaced).sum()
    }

    /// Notes a message: behind the others, or in the place of one with the same key that nobody has heard.
    fn note(&mut self, mut message: Broadcast) {
        let index = self.messages.len();
        if let Some(key) = &message.key
            && let Some(before) = self.keys.insert(key.clone(), index)
            && before >= self.heard
            && self.messages[before].exclude == message.exclude
        {
            self.keys.insert(key.clone(), before);
            let old = &mut self.messages[before];
            self.len = self.len - old.plain.len() + message.plain.len();
            self.content = self.content - old.payload.len() + message.payload.len();
            message.replaced = old.replaced + 1;
            *old = message;
            return;
        }
        self.len += message.plain.len();
        self.content += message.payload.len();
        self.excluded.extend(message.exclude.map(|channel| (channel, index)));
        self.messages.push(message);
    }

    /// A message, unless this channel does not get it.
    pub(crate) fn message(&self, index: usize, channel: u32) -> Option<&Broadcast> {
        self.messages.get(index).filter(|message| message.exclude != Some(channel))
    }

    /// Where the frames for all who agreed on `params` are.
    #[inline]
    fn variant(&mut self, params: Option<CompressParams>) -> usize {
        self.variants.iter().position(|variant| variant.params == params).unwrap_or_else(|| {
            self.variants.push(Variant { params, frames: Vec::new(), joined: None });
            self.variants.len() - 1
        })
    }

    /// The frames for all who agreed on `params`, at least up to the one at `index`.
    pub(crate) fn frames(&mut self, params: Option<CompressParams>, index: usize) -> &[Bytes] {
        let at = self.variant(params);
        let frames = &mut self.variants[at].frames;
        if let Some(more) = self.messages.get(frames.len()..=index) {
            frames.extend(more.iter().map(|message| message.frame(params)));
        }
        frames
    }

    /// What a channel whose peer agreed on `params` gets, where one write of it is to be had. The round is over.
    pub(crate) fn share(&mut self, params: Option<CompressParams>, channel: u32) -> Option<Share<'_>> {
        let at = self.variant(params);
        if self.variants[at].joined.is_none() {
            let frames = self.frames(params, self.messages.len() - 1);
            let len = frames.iter().map(Bytes::len).sum::<usize>();
            let bytes = match frames {
                [frame] => Some(frame.clone()),
                _ if len <= JOINED || frames.iter().all(|frame| frame.len() <= SMALL) => Some(frames.concat().into()),
                _ => None,
            };
            let end = |end: &mut usize, frame: &Bytes| {
                *end += frame.len();
                Some(*end)
            };
            let ends = frames.iter().scan(0, end).collect();
            self.variants[at].joined = Some(bytes.map(|bytes| Joined { bytes, ends }));
        }
        let begin = self.excluded.partition_point(|&(other, _)| other < channel);
        let gaps = &self.excluded[begin..];
        let gaps = &gaps[..gaps.partition_point(|&(other, _)| other == channel)];
        let Variant { joined, frames, .. } = &self.variants[at];
        let joined = joined.as_ref()?.as_ref().filter(|_| gaps.len() <= GAPS)?;
        let left_out: usize = gaps.iter().map(|&(_, index)| self.messages[index].payload.len()).sum();
        let sent = Sent::messages(self.messages.len() - gaps.len(), self.content - left_out);
        Some(Share { joined, frames, gaps, sent })
    }
}

/// What has been broadcast in this round; see the module.
#[derive(Default)]
pub(crate) struct Round {
    /// One for each endpoint that has broadcast: hardly ever more than one.
    rooms: Vec<Room>,
    /// What was published last, before it reaches anybody.
    pub(crate) run: Option<Run>,
    /// What was published and is waited for by connections that have nothing else to write; see `topics::fanout`. No more
    /// than there are connections.
    pub(crate) published: Vec<Room>,
}

impl Round {
    /// The turn of a broadcast has come.
    pub(crate) fn note(&mut self, endpoint: Arc<Endpoint>, message: Broadcast) {
        let index = self.rooms.iter().position(|room| Arc::ptr_eq(&room.endpoint, &endpoint)).unwrap_or_else(|| {
            self.rooms.push(Room::new(endpoint));
            self.rooms.len() - 1
        });
        self.rooms[index].note(message);
    }

    /// Whether there are broadcasts that a connection may not have heard.
    pub(crate) fn has_broadcasts(&self, conn: &Connection) -> bool {
        self.rooms.iter().any(|room| Arc::ptr_eq(&room.endpoint, conn.endpoint()))
    }

    /// Before anything else is queued on a connection: what was published and broadcast earlier.
    pub(crate) fn catch_up(&mut self, conn: &Arc<Connection>, touched: &mut Vec<Arc<Connection>>) {
        // First, because it began to wait for that when it had heard all there was.
        if !self.published.is_empty() {
            conn.queue_awaited(&mut self.published);
        }
        if let Some(room) = self.rooms.iter_mut().find(|room| Arc::ptr_eq(&room.endpoint, conn.endpoint())) {
            conn.hear(room, touched);
            room.heard = room.messages.len();
        }
    }

    /// The end of the round: everybody hears what is left, and has it written.
    pub(crate) fn finish(&mut self, io: &IoThread) {
        let Self { rooms, published, .. } = self;
        let (mut some, mut courtesy) = (Vec::new(), Courtesy::default());
        for mut room in rooms.drain(..) {
            room.excluded.sort_unstable();
            let mut next = Some(0);
            while let Some(from) = next {
                // Not one by one under the lock: the ticking thread, which takes it too, must not wait for a write.
                next = room.endpoint.some_on(io.index, from, AT_A_TIME, &mut some);
                for conn in some.drain(..) {
                    // A bug that panics for one connection must not cost the others theirs.
                    let _ = catch_unwind(AssertUnwindSafe(|| conn.hear_and_write(&mut room, published)))
                        .inspect_err(|panic| conn.fault(panic.as_ref()));
                    courtesy.served();
                }
            }
        }
    }
}
