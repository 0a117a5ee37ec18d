//! The smallest WebSocket server that can echo and fan out: the system calls, the unmasking and one copy, and nothing else.
//!
//! It is no server to use: it answers the sample key of RFC 6455 only, takes fragments for messages, answers no ping, and
//! trusts its peers to be the load generator.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token};

use crate::frame::{BINARY, CLOSE, TEXT, apply_mask, client_frame_at, push_header};
use crate::{Mode, handshake, raise_open_files};

const LISTENER: Token = Token(usize::MAX);
/// Room for each read: all that one connection has in flight in any of the cases.
const READ_ROOM: usize = 256 * 1024;
/// The generator sends nothing longer.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// A peer that reads nothing is dropped when this much waits for it.
const MAX_UNSENT: usize = 64 * 1024 * 1024;

#[derive(Debug)]
struct Peer {
    stream: TcpStream,
    upgraded: bool,
    /// The beginning of a head or frame whose end has not arrived.
    partial: Vec<u8>,
    /// What the socket had no room for.
    unsent: Vec<u8>,
}

impl Peer {
    /// Sends now what the socket takes, and keeps the rest for when it is writable.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut written = 0;
        if self.unsent.is_empty() {
            written = write_some(&mut self.stream, bytes)?;
        }
        if self.unsent.len() + bytes.len() - written > MAX_UNSENT {
            return Err(ErrorKind::OutOfMemory.into());
        }
        self.unsent.extend_from_slice(&bytes[written..]);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let written = write_some(&mut self.stream, &self.unsent)?;
        self.unsent.drain(..written);
        Ok(())
    }
}

/// Writes until everything is written or the socket is full; returns how much went.
fn write_some(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

/// All connections, served by whoever calls [`Server::poll`].
#[derive(Debug)]
pub struct Server {
    mode: Mode,
    poll: Poll,
    events: Option<Events>,
    listener: TcpListener,
    registry: Registry,
    /// A connection's token is its index here; places are used again.
    peers: Vec<Option<Peer>>,
    free: Vec<usize>,
    /// Shared by all connections, so that an idle one owns no buffer: what was just read, and the frames to send.
    input: Vec<u8>,
    replies: Vec<u8>,
    answered: usize,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// When the address is taken, or the system has no more of something.
    pub fn bind(address: SocketAddr, mode: Mode) -> io::Result<Self> {
        raise_open_files()?;
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(address)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let registry = poll.registry().try_clone()?;
        let (peers, free, input, replies) = (Vec::new(), Vec::new(), vec![0; READ_ROOM], Vec::new());
        let events = Some(Events::with_capacity(1024));
        Ok(Self { mode, poll, events, listener, registry, peers, free, input, replies, answered: 0 })
    }

    /// Waits for something to do, and does it; returns for how many connections there was something.
    ///
    /// # Errors
    /// When waiting or accepting fails.
    pub fn poll(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        let Some(mut events) = self.events.take() else { return Ok(0) };
        let waited = self.poll.poll(&mut events, timeout);
        let result = match waited {
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
            Ok(()) => self.serve(&events),
        };
        self.events = Some(events);
        result
    }

    fn serve(&mut self, events: &Events) -> io::Result<usize> {
        let mut count = 0;
        for event in events {
            count += 1;
            if event.token() == LISTENER {
                self.accept()?;
            } else {
                self.on_event(event);
            }
        }
        Ok(count)
    }

    /// How many connections have had their opening handshake.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.peers.iter().flatten().filter(|peer| peer.upgraded).count()
    }

    /// How many messages came since the last call.
    pub fn take_answered(&mut self) -> usize {
        std::mem::take(&mut self.answered)
    }

    /// Sends a text message to everybody.
    pub fn broadcast(&mut self, message: &[u8]) {
        self.replies.clear();
        push_header(&mut self.replies, TEXT, message.len());
        self.replies.extend_from_slice(message);
        self.send_to_all();
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            stream.set_nodelay(true)?;
            let index = self.free.pop().unwrap_or_else(|| {
                self.peers.push(None);
                self.peers.len() - 1
            });
            self.registry.register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
            let peer = Peer { stream, upgraded: false, partial: Vec::new(), unsent: Vec::new() };
            self.peers[index] = Some(peer);
        }
    }

    fn on_event(&mut self, event: &Event) {
        let index = event.token().0;
        // An event of this batch may be for a connection that an earlier one closed.
        let Some(peer) = self.peers.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        let mut done = if peer.unsent.is_empty() { Ok(()) } else { peer.flush() };
        if done.is_ok() && (event.is_readable() || event.is_error()) {
            done = self.read(index, event.is_read_closed() || event.is_error());
        }
        if done.is_err() {
            self.close(index);
        }
    }

    /// Dropping the socket closes it, which takes it out of the poll.
    fn close(&mut self, index: usize) {
        if self.peers[index].take().is_some() {
            self.free.push(index);
        }
    }

    /// Reads one connection dry: edge-triggered, so a full buffer means another read, and so does a hang-up.
    fn read(&mut self, index: usize, hung_up: bool) -> io::Result<()> {
        loop {
            let Some(peer) = self.peers[index].as_mut() else {
                return Ok(());
            };
            let kept = peer.partial.len();
            if self.input.len() < kept + READ_ROOM {
                self.input.resize(kept + READ_ROOM, 0);
            }
            let read = match peer.stream.read(&mut self.input[kept..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let full = kept + read == self.input.len();
            self.input[..kept].copy_from_slice(&peer.partial);
            peer.partial.clear();
            self.replies.clear();
            let input = &mut self.input[..kept + read];
            let start = if peer.upgraded { 0 } else { upgrade(peer, input)? };
            let mut used = start;
            if peer.upgraded {
                let (end, count) = answer(&mut input[start..], &mut self.replies)?;
                used += end;
                self.answered += count;
            }
            peer.partial.extend_from_slice(&input[used..]);
            if !self.replies.is_empty() {
                self.deliver(index)?;
            }
            if !full && !hung_up {
                return Ok(());
            }
        }
    }

    /// Sends what one read produced: one write for each receiver.
    fn deliver(&mut self, sender: usize) -> io::Result<()> {
        if self.mode == Mode::Echo {
            return self.peers[sender].as_mut().map_or(Ok(()), |peer| peer.send(&self.replies));
        }
        self.send_to_all();
        Ok(())
    }

    /// One write for each.
    fn send_to_all(&mut self) {
        for index in 0..self.peers.len() {
            let Some(peer) = self.peers[index].as_mut().filter(|peer| peer.upgraded) else {
                continue;
            };
            if peer.send(&self.replies).is_err() {
                self.close(index);
            }
        }
    }
}

/// Answers the opening handshake once its head is complete; returns how many bytes that took.
fn upgrade(peer: &mut Peer, input: &[u8]) -> io::Result<usize> {
    let Some(end) = handshake::head_length(input) else {
        return if input.len() > handshake::MAX_HEAD { Err(ErrorKind::InvalidData.into()) } else { Ok(0) };
    };
    let head = String::from_utf8_lossy(&input[..end]);
    if handshake::field(&head, "sec-websocket-key") != Some(handshake::KEY) {
        peer.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")?;
        return Err(ErrorKind::InvalidData.into());
    }
    peer.upgraded = true;
    peer.send(handshake::response().as_bytes())?;
    Ok(end)
}

/// Turns every whole message in `input` into a frame in `replies`; returns how many bytes that took, and how many they were.
fn answer(input: &mut [u8], replies: &mut Vec<u8>) -> io::Result<(usize, usize)> {
    let (mut used, mut count) = (0, 0);
    while let Some(frame) = client_frame_at(&input[used..], MAX_MESSAGE).map_err(io::Error::other)? {
        let payload = &mut input[used + frame.start..used + frame.end];
        match frame.first & 0x0F {
            CLOSE => return Err(ErrorKind::ConnectionAborted.into()),
            opcode if opcode <= BINARY => {
                apply_mask(payload, frame.mask);
                push_header(replies, opcode, payload.len());
                replies.extend_from_slice(payload);
                count += 1;
            }
            _ => {}
        }
        used += frame.end;
    }
    Ok((used, count))
}
