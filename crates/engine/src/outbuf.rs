//! What waits to be written to one connection: frames in order, written by as few vectored writes as possible.
//!
//! Small frames are copied into the last owned chunk; large and shared ones (a broadcast is encoded once for all)
//! stay where they are. An empty buffer owns no memory: an idle connection keeps nothing.
//!
//! What is to be decided as late as possible is a chunk without bytes, which becomes a frame (`resolve`) when the frames
//! before it leave: a message that newer ones replace, and one that shares its compression's context with such.

use crate::wire;
use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::io::{self, IoSlice};

/// Slices handed to one write; Linux takes 1024 at most (IOV_MAX), few are ever needed.
const MAX_SLICES: usize = 64;

/// Frames up to this size are copied together.
const SMALL: usize = 2 << 10;

#[derive(Debug)]
enum Chunk {
    /// Frames of our own making, one behind the other.
    Owned { data: Vec<u8>, written: usize },
    /// One frame.
    Shared(Bytes),
    /// One message's only frame, which may be dropped while no byte of it has left.
    Droppable(Bytes),
    /// No frame yet.
    Late(Late),
}

/// What becomes a frame when its turn comes.
#[derive(Debug)]
pub(crate) enum Late {
    /// The newest message of this key.
    Keyed(Bytes),
    /// A message that is compressed in the order in which messages leave.
    Message(wire::Opcode, Bytes),
}

impl Chunk {
    fn rest(&self) -> &[u8] {
        match self {
            Self::Owned { data, written } => &data[*written..],
            Self::Shared(bytes) | Self::Droppable(bytes) => bytes,
            Self::Late(_) => &[],
        }
    }

    fn is_late(&self) -> bool {
        matches!(self, Self::Late(_))
    }

    /// What it counts. A key's message is counted where it is.
    fn size(&self) -> usize {
        match self {
            Self::Late(Late::Message(_, payload)) => payload.len(),
            _ => self.rest().len(),
        }
    }
}

/// How far a write came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// Nothing is left.
    All,
    /// The socket takes no more for now.
    Blocked,
    /// What comes next is no frame yet.
    Late,
}

/// The queue of chunks; boxed by nobody: `VecDeque` without elements has no allocation.
#[derive(Debug, Default)]
pub(crate) struct OutBuf {
    chunks: VecDeque<Chunk>,
    /// Some bytes of the first chunk have been written: it has to be finished before anything else may follow.
    partial: bool,
    /// Chunks that are no frames yet. Small numbers: each has a chunk.
    late: u32,
}

impl OutBuf {
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes that wait, without those of messages with a key.
    pub(crate) fn len(&self) -> usize {
        self.chunks.iter().map(Chunk::size).sum()
    }

    /// Whether something is no frame yet.
    pub(crate) fn has_late(&self) -> bool {
        self.late > 0
    }

    /// How much is no frame yet.
    pub(crate) fn late(&self) -> usize {
        self.late as usize
    }

    pub(crate) fn push_late(&mut self, late: Late) {
        self.late += 1;
        self.chunks.push_back(Chunk::Late(late));
    }

    /// The messages with a key of a buffer that is thrown away.
    pub(crate) fn into_keys(self) -> impl Iterator<Item = Bytes> {
        self.chunks.into_iter().filter_map(|chunk| match chunk {
            Chunk::Late(Late::Keyed(key)) => Some(key),
            _ => None,
        })
    }

    /// Everything of another buffer follows.
    pub(crate) fn append(&mut self, other: Self) {
        for chunk in other.chunks {
            match chunk {
                Chunk::Shared(bytes) => self.push_shared(bytes),
                Chunk::Late(late) => self.push_late(late),
                chunk => self.chunks.push_back(chunk),
            }
        }
    }

    /// Where a ping or pong is appended: at the end, or in front of what is no frame yet, which may take a while.
    pub(crate) fn control(&mut self) -> &mut Vec<u8> {
        if self.late == 0 {
            return self.tail();
        }
        let at = self.chunks.iter().position(Chunk::is_late).unwrap_or(self.chunks.len());
        let at = match at.checked_sub(1) {
            Some(before) if matches!(self.chunks[before], Chunk::Owned { .. }) => before,
            _ => {
                self.chunks.insert(at, Chunk::Owned { data: Vec::new(), written: 0 });
                at
            }
        };
        match &mut self.chunks[at] {
            Chunk::Owned { data, .. } => data,
            _ => unreachable!("an owned chunk was just put there"),
        }
    }

    /// Makes frames of what is late, from the front on, until `window` bytes can leave. `make` appends the frame to what it
    /// is given, or nothing, or says that it has to wait, with all behind it. Returns whether there was any.
    pub(crate) fn resolve(&mut self, window: usize, mut make: impl FnMut(&Late, &mut Vec<u8>) -> bool) -> bool {
        let (mut index, mut ready, mut any) = (0, 0, false);
        while self.late > 0 && ready < window && index < self.chunks.len() {
            let Chunk::Late(late) = &self.chunks[index] else {
                ready += self.chunks[index].rest().len();
                index += 1;
                continue;
            };
            let mut frame = Vec::new();
            if !make(late, &mut frame) {
                break;
            }
            any = true;
            self.late -= 1;
            ready += frame.len();
            let before = index.checked_sub(1).map(|before| &mut self.chunks[before]);
            match before {
                Some(Chunk::Owned { data, .. }) if frame.len() <= SMALL => {
                    data.append(&mut frame);
                    self.chunks.remove(index);
                }
                _ if frame.is_empty() => {
                    self.chunks.remove(index);
                }
                _ => {
                    self.chunks[index] = Chunk::Owned { data: frame, written: 0 };
                    index += 1;
                }
            }
        }
        any
    }

    /// The owned chunk at the end, to append small frames to.
    pub(crate) fn tail(&mut self) -> &mut Vec<u8> {
        if !matches!(self.chunks.back(), Some(Chunk::Owned { .. })) {
            self.chunks.push_back(Chunk::Owned { data: Vec::new(), written: 0 });
        }
        match self.chunks.back_mut() {
            Some(Chunk::Owned { data, .. }) => data,
            _ => unreachable!("an owned chunk was just put at the end"),
        }
    }

    pub(crate) fn push_shared(&mut self, bytes: Bytes) {
        // Behind something else a small frame is cheaper to copy than to give a slice of its own: hundreds of them
        // leave in one write.
        if !self.chunks.is_empty() && bytes.len() <= SMALL {
            self.tail().extend_from_slice(&bytes);
        } else if !bytes.is_empty() {
            self.chunks.push_back(Chunk::Shared(bytes));
        }
    }

    pub(crate) fn push_droppable(&mut self, bytes: Bytes) {
        self.chunks.push_back(Chunk::Droppable(bytes));
    }

    /// What a write of `frames` in a row left, of which the first `written` bytes have gone; into an empty buffer.
    pub(crate) fn push_rest<'a>(
        &mut self,
        frames: impl IntoIterator<Item = &'a Bytes>,
        mut written: usize,
        droppable: bool,
    ) {
        for frame in frames {
            if written >= frame.len() {
                written -= frame.len();
            } else if written > 0 {
                self.chunks.push_back(Chunk::Shared(frame.slice(written..)));
                self.partial = true;
                written = 0;
            } else if droppable {
                self.push_droppable(frame.clone());
            } else {
                self.push_shared(frame.clone());
            }
        }
    }

    /// Drops the messages that have waited longest, until `excess` bytes are gone or none is left that may be dropped;
    /// returns how many messages and bytes that were. `forget` drops the message of a key, and tells what it counted.
    pub(crate) fn drop_oldest(&mut self, excess: usize, mut forget: impl FnMut(&Bytes) -> usize) -> (u64, usize) {
        let (mut messages, mut bytes) = (0, 0);
        let mut index = usize::from(self.partial);
        while bytes < excess && index < self.chunks.len() {
            bytes += match &self.chunks[index] {
                Chunk::Droppable(frame) => frame.len(),
                Chunk::Late(Late::Keyed(key)) => {
                    self.late -= 1;
                    forget(key)
                }
                _ => {
                    index += 1;
                    continue;
                }
            };
            messages += 1;
            self.chunks.remove(index);
        }
        (messages, bytes)
    }

    /// Takes everything that has not begun to leave. The chunk already begun stays whole, because a frame cut in the middle
    /// would make the close frame behind it unreadable.
    pub(crate) fn take_unsent(&mut self) -> Self {
        let mut unsent = std::mem::take(self);
        if unsent.partial
            && let Some(begun) = unsent.chunks.pop_front()
        {
            // It has bytes: it is not late.
            self.chunks.push_back(begun);
            (self.partial, unsent.partial) = (true, false);
        }
        unsent
    }

    /// Writes with `write` until nothing is left or the socket is full; returns also the bytes written.
    pub(crate) fn flush(
        &mut self,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> (usize, io::Result<Flushed>) {
        let mut total = 0;
        while !self.chunks.is_empty() {
            if self.late > 0 && self.chunks[0].is_late() {
                return (total, Ok(Flushed::Late));
            }
            let result = match self.chunks.len() {
                1 => write(&[IoSlice::new(self.chunks[0].rest())]),
                _ => self.write_many(&mut write),
            };
            match result {
                Ok(0) => return (total, Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    total += n;
                    self.advance(n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return (total, Ok(Flushed::Blocked)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return (total, Err(e)),
            }
        }
        self.chunks = VecDeque::new();
        (total, Ok(Flushed::All))
    }

    /// Apart from the case of one chunk, which is most frequent and needs no kilobyte of slices.
    #[inline(never)]
    fn write_many(&self, write: &mut impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut used = 0;
        let frames = self.chunks.iter().take_while(|chunk| !chunk.is_late());
        for (slice, chunk) in slices.iter_mut().zip(frames) {
            *slice = IoSlice::new(chunk.rest());
            used += 1;
        }
        write(&slices[..used])
    }

    fn advance(&mut self, mut n: usize) {
        while n > 0 {
            let Some(chunk) = self.chunks.front_mut() else { return };
            let rest = chunk.rest().len();
            if n < rest {
                match chunk {
                    Chunk::Owned { written, .. } => *written += n,
                    Chunk::Shared(bytes) | Chunk::Droppable(bytes) => bytes.advance(n),
                    Chunk::Late(_) => unreachable!("what is no frame yet is not written"),
                }
                self.partial = true;
                return;
            }
            n -= rest;
            self.chunks.pop_front();
            self.partial = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> (OutBuf, Vec<u8>) {
        let mut buf = OutBuf::default();
        buf.tail().extend_from_slice(b"abc");
        buf.tail().extend_from_slice(b"def");
        buf.push_shared(Bytes::from_static(b"shared"));
        buf.push_shared(Bytes::new());
        buf.tail().extend_from_slice(b"tail");
        (buf, b"abcdefsharedtail".to_vec())
    }

    #[test]
    fn one_vectored_write_when_the_socket_takes_all() {
        let (mut buf, want) = filled();
        let mut calls = Vec::new();
        let (n, done) = buf.flush(|s| {
            calls.push(s.iter().flat_map(|s| s.to_vec()).collect::<Vec<u8>>());
            Ok(calls[0].len())
        });
        assert_eq!((n, done.unwrap()), (want.len(), Flushed::All));
        assert_eq!(calls, [want]);
        assert!(buf.is_empty());
    }

    #[test]
    fn every_split_writes_the_same_bytes() {
        for step in 1..=16 {
            let (mut buf, want) = filled();
            let mut got = Vec::new();
            while !buf.is_empty() {
                let (_, done) = buf.flush(|s| {
                    let all: Vec<u8> = s.iter().flat_map(|s| s.to_vec()).collect();
                    let n = step.min(all.len());
                    got.extend_from_slice(&all[..n]);
                    Ok(n)
                });
                done.unwrap();
            }
            assert_eq!(got, want, "step {step}");
        }
    }

    #[test]
    fn dropping_keeps_the_chunk_that_has_begun() {
        let (mut buf, _) = filled();
        let mut first = true;
        let _ = buf.flush(|_| if std::mem::take(&mut first) { Ok(2) } else { Err(io::ErrorKind::WouldBlock.into()) });
        assert_eq!(buf.take_unsent().len(), 0, "small frames lie in one chunk");
        buf.push_shared(Bytes::from(vec![0; SMALL + 1]));
        assert_eq!(buf.take_unsent().len(), SMALL + 1);
        let mut got = Vec::new();
        let _ = buf.flush(|s| {
            got.extend_from_slice(&s[0]);
            Ok(s[0].len())
        });
        assert_eq!(got, b"cdefsharedtail");
        let (mut fresh, _) = filled();
        assert_eq!(fresh.take_unsent().len(), 16);
        assert!(fresh.is_empty());
    }

    #[test]
    fn the_rest_of_a_write_goes_on_where_the_write_stopped() {
        let frames = [Bytes::from_static(b"one"), Bytes::from(vec![b'2'; SMALL + 1]), Bytes::from_static(b"three")];
        let all = frames.concat();
        for written in 0..=all.len() {
            for droppable in [false, true] {
                let mut buf = OutBuf::default();
                buf.push_rest(&frames, written, droppable);
                assert_eq!(buf.len(), all.len() - written);
                let mut got = Vec::new();
                let _ = buf.flush(|s| {
                    got = s.iter().flat_map(|s| s.to_vec()).collect();
                    Ok(got.len())
                });
                assert_eq!(got, all[written..], "{written}");
            }
        }
        let mut buf = OutBuf::default();
        buf.push_rest(&frames, 1, true);
        assert_eq!(buf.drop_oldest(usize::MAX, |_| 0), (2, SMALL + 1 + 5), "the first has begun to leave");
        assert_eq!(buf.len(), 2);
    }

    #[test]
    fn the_oldest_messages_go_first_and_control_frames_stay() {
        let mut buf = OutBuf::default();
        for frame in ["one", "two", "three"] {
            buf.push_droppable(Bytes::from_static(frame.as_bytes()));
        }
        buf.tail().extend_from_slice(b"PING");
        buf.push_droppable(Bytes::from_static(b"four"));
        let mut first = true;
        let _ = buf.flush(|_| if std::mem::take(&mut first) { Ok(1) } else { Err(io::ErrorKind::WouldBlock.into()) });
        assert_eq!(buf.drop_oldest(4, |_| 0), (2, 8), "the first has begun to leave");
        assert_eq!(buf.drop_oldest(100, |_| 0), (1, 4));
        let mut got = Vec::new();
        let _ = buf.flush(|s| {
            got = s.iter().flat_map(|s| s.to_vec()).collect();
            Ok(got.len())
        });
        assert_eq!(got, b"nePING");
    }

    /// Writes what can be written, at most `most` bytes at a time.
    fn written(buf: &mut OutBuf, most: usize) -> (Vec<u8>, Flushed) {
        let mut got = Vec::new();
        let (_, done) = buf.flush(|s| {
            let all: Vec<u8> = s.iter().flat_map(|s| s.to_vec()).collect();
            let n = most.min(all.len());
            got.extend_from_slice(&all[..n]);
            Ok(n)
        });
        (got, done.unwrap())
    }

    #[test]
    fn what_is_late_becomes_a_frame_in_its_place() {
        for (most, large) in [(usize::MAX, false), (1, false), (3, true)] {
            let mut buf = OutBuf::default();
            buf.tail().extend_from_slice(b"one");
            buf.push_late(Late::Keyed(Bytes::from_static(b"a")));
            buf.push_late(Late::Message(wire::Opcode::Text, Bytes::from_static(b"later")));
            buf.push_shared(Bytes::from_static(b"shared"));
            buf.push_late(Late::Keyed(Bytes::from_static(b"b")));
            buf.tail().extend_from_slice(b"end");
            assert_eq!((buf.late(), buf.len()), (3, 3 + 5 + 6 + 3));
            // Pings and pongs go past what waits, in the order among them.
            buf.control().extend_from_slice(b"<ping>");
            assert_eq!(written(&mut buf, most), (b"one<ping>".to_vec(), Flushed::Late));
            buf.control().extend_from_slice(b"<pong>");
            buf.control().extend_from_slice(b"<pong>");
            let frame = |late: &Late| match late {
                Late::Keyed(key) if large => [&key[..], &[b'.'; SMALL]].concat(),
                Late::Keyed(key) => key.to_vec(),
                Late::Message(_, payload) => payload.to_vec(),
            };
            let made = buf.resolve(usize::MAX, |late, into| {
                let may = !matches!(late, Late::Keyed(key) if &key[..] == b"b");
                if may {
                    into.extend_from_slice(&frame(late));
                }
                may
            });
            assert!(made);
            let a = frame(&Late::Keyed(Bytes::from_static(b"a")));
            let want = [b"<pong><pong>", &a[..], b"latershared"].concat();
            assert_eq!(written(&mut buf, most), (want, Flushed::Late));
            assert!(!buf.resolve(usize::MAX, |_, _| false));
            // One whose message has gone leaves nothing.
            assert!(buf.resolve(usize::MAX, |_, _| true));
            assert_eq!(written(&mut buf, most), (b"end".to_vec(), Flushed::All));
            assert!(!buf.has_late());
        }
    }

    #[test]
    fn no_more_frames_are_made_than_can_leave() {
        let mut buf = OutBuf::default();
        for _ in 0..100 {
            buf.push_late(Late::Keyed(Bytes::from_static(b"k")));
        }
        let mut make = |_: &Late, into: &mut Vec<u8>| {
            into.extend_from_slice(&[0; 10]);
            true
        };
        assert!(buf.resolve(35, &mut make));
        assert_eq!((buf.late(), buf.len()), (96, 40));
        assert!(!buf.resolve(35, &mut make), "there is enough");
        assert_eq!(written(&mut buf, 7).0.len(), 40);
        assert!(buf.resolve(usize::MAX, &mut make));
        assert_eq!(written(&mut buf, usize::MAX), (vec![0; 960], Flushed::All));
    }

    #[test]
    fn keys_are_dropped_and_thrown_away_like_messages() {
        let keys = [Bytes::from_static(b"a"), Bytes::from_static(b"b"), Bytes::from_static(b"c")];
        let mut buf = OutBuf::default();
        buf.push_droppable(Bytes::from_static(b"one"));
        let _ = buf.flush(|_| Err(io::ErrorKind::WouldBlock.into()));
        for key in &keys {
            buf.push_late(Late::Keyed(key.clone()));
        }
        let mut forgotten = Vec::new();
        let forget = |key: &Bytes| {
            forgotten.push(key.clone());
            100
        };
        assert_eq!(buf.drop_oldest(150, forget), (3, 203));
        assert_eq!((forgotten, buf.late()), (keys[..2].to_vec(), 1));
        let mut rest = OutBuf::default();
        rest.append(buf);
        assert_eq!(rest.late(), 1);
        assert_eq!(rest.take_unsent().into_keys().collect::<Vec<_>>(), keys[2..]);
        assert!(!rest.has_late());
    }

    #[test]
    fn errors_and_blocking_are_told() {
        let (mut buf, _) = filled();
        assert_eq!(buf.flush(|_| Err(io::ErrorKind::WouldBlock.into())).1.unwrap(), Flushed::Blocked);
        assert!(buf.flush(|_| Err(io::ErrorKind::BrokenPipe.into())).1.is_err());
        assert!(buf.flush(|_| Ok(0)).1.is_err());
    }
}
