//! The receiving side: a compressed message's payload to its data, in whatever pieces it arrives (RFC 7692 section
//! 7.2.2).
//!
//! A message is a series of DEFLATE blocks up to the header of a last, empty one, whose remaining four bytes the receiver
//! adds ([`TAIL`]). What may differ at the end:
//!
//! | the payload | is |
//! |---|---|
//! | is empty | the empty message. Section 7.2.3.6 spends a byte on it; some senders don't |
//! | ends with a block that has BFINAL set, and no more | complete; section 7.2.3.4 adds a byte, some senders don't |
//! | has more after such a block | a new stream, which begins with the next byte and an empty window |
//! | still has its tail (then it ends with 0xff, and only then: no stored block's header does) | complete |
//! | ends anywhere else than where a tail fits | cut off: a violation, not half a message |
//!
//! RFC 7692 names no close code for data that can't be inflated. It is 1007 here: to RFC 6455 section 7.4.1 that is data
//! "not consistent with the type of the message", and the frames themselves broke no rule. ws sends 1007 too, the Python
//! package websockets 1002.

use super::{DeflateParams, TAIL};
use crate::decode::Role;
use crate::violation::{self, Violation};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Deref;
use zlib_rs::{Inflate, InflateFlush, Status};

/// What one context for inflating takes from the allocator, in bytes, whatever the window: 32 KiB of window, Huffman
/// tables, state. On x86-64; see the module's header.
pub const INFLATE_CONTEXT: usize = 47_704;

/// How much is inflated at once. Half of a first-level cache, so that it's still there when it is checked and copied;
/// and what a message that fits is handed over in, without allocating.
const CHUNK: usize = 16 << 10;

/// How many idle contexts a thread keeps. One is enough while messages arrive whole; the others are for those that
/// don't.
const SPARES: usize = 4;

thread_local! {
    /// Contexts between messages, reset.
    static SPARE: RefCell<[Option<Box<Context>>; SPARES]> = const { RefCell::new([const { None }; SPARES]) };
    /// The memory of the [`Chunk`], when none is in use.
    static CHUNK_MEMORY: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The receiving side of one connection.
#[derive(Debug)]
pub(crate) struct Inflation {
    /// Held during a compressed message, and from the first one on if the peer takes its context over.
    context: Option<Box<Context>>,
    /// The last byte of the message's payload so far.
    last_byte: Option<u8>,
    takes_over: bool,
    /// A block with BFINAL set ended the stream: before more can be inflated the context must be reset.
    ended: bool,
    /// The message that is open is compressed: its further frames, which don't say so, are too.
    pub(crate) open: bool,
}

impl Inflation {
    pub(crate) fn new(role: Role, params: DeflateParams) -> Self {
        Self { context: None, last_byte: None, takes_over: params.peer_takes_over(role), ended: false, open: false }
    }

    /// Inflates the next piece of a message's payload into `chunk`, which goes to `on_full` and begins anew whenever it
    /// is full. `last`: the piece ends the message.
    ///
    /// When this fails for the piece's sake, `chunk` still holds what came before the fault.
    pub(crate) fn inflate(
        &mut self,
        piece: &[u8],
        last: bool,
        chunk: &mut Chunk,
        mut on_full: impl FnMut(&[u8]) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        if let Some(&byte) = piece.last() {
            self.last_byte = Some(byte);
            let context = self.context.get_or_insert_with(spare);
            run(&mut context.0, &mut self.ended, piece, chunk, &mut on_full)?;
        }
        if last { self.finish() } else { Ok(()) }
    }

    /// The message has no more payload: checks that it is complete, and gives the context back.
    fn finish(&mut self) -> Result<(), Violation> {
        let complete = match (self.last_byte.take(), &mut self.context) {
            (Some(byte), Some(context)) if !self.ended => {
                let has_tail = byte == 0xff;
                ends_here(&mut context.0, has_tail)
            }
            _ => true,
        };
        if !complete {
            return Err(violation::DEFLATE_CUT_OFF);
        }
        if !self.takes_over {
            self.ended = false;
            if let Some(context) = self.context.take() {
                give_back(context);
            }
        }
        Ok(())
    }
}

/// Inflates all of `input`.
fn run(
    context: &mut Inflate,
    ended: &mut bool,
    mut input: &[u8],
    chunk: &mut Chunk,
    on_full: &mut impl FnMut(&[u8]) -> Result<(), Violation>,
) -> Result<(), Violation> {
    loop {
        if chunk.is_full() {
            let taken = on_full(chunk);
            chunk.clear();
            taken?;
        }
        if *ended {
            context.reset(false);
            *ended = false;
        }
        let before = (context.total_in(), context.total_out());
        let status = context.decompress(input, chunk.room(), InflateFlush::NoFlush);
        // The casts lose nothing: it's no more than `input` has, and than there is room for.
        let used = (context.total_in() - before.0) as usize;
        let made = (context.total_out() - before.1) as usize;
        input = &input[used..];
        chunk.filled += made;
        match status {
            Err(_) => return Err(violation::DEFLATE_CORRUPT),
            Ok(Status::StreamEnd) => {
                *ended = true;
                if input.is_empty() {
                    return Ok(());
                }
            }
            // A full chunk may mean that there's more to come from the bytes it has taken.
            Ok(_) if chunk.is_full() => {}
            Ok(_) if input.is_empty() => return Ok(()),
            // It takes all input there is or fills all room there is. Should it ever not, this isn't an endless loop.
            Ok(_) if used == 0 && made == 0 => return Err(violation::DEFLATE_CORRUPT),
            Ok(_) => {}
        }
    }
}

/// Puts the tail on, unless the sender left it there, and looks whether a block ends exactly behind it.
///
/// Told to, zlib stops at the end of a block: then one byte more is not taken. Anywhere else, inside the code lengths of
/// a dynamic block too, it takes that byte, or stopped before, or finds a fault. Behind a tail that is there already it
/// stands at the end of a block, where it doesn't stop again, so it gets another empty block.
fn ends_here(context: &mut Inflate, has_tail: bool) -> bool {
    // A block's header, the tail, and the byte more; all zero but the tail.
    let mut end = [0; 6];
    end[1..5].copy_from_slice(&TAIL);
    let end = if has_tail { &end[..] } else { &end[1..] };

    let (before_in, before_out) = (context.total_in(), context.total_out());
    let mut nothing = [0; 16];
    let status = context.decompress(end, &mut nothing, InflateFlush::Block);
    status == Ok(Status::Ok)
        && context.total_out() == before_out
        && context.total_in() - before_in == end.len() as u64 - 1
}

/// What inflates, and the window it refers back to.
struct Context(Inflate);

impl Context {
    /// Raw DEFLATE, with the whole window whatever was agreed on: the header of [`super`].
    fn new() -> Self {
        Self(Inflate::new(false, 15))
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("total_in", &self.0.total_in()).finish_non_exhaustive()
    }
}

/// A context that is as new.
fn spare() -> Box<Context> {
    // The thread-local is gone only while the thread ends.
    let spare = SPARE.try_with(|spare| spare.borrow_mut().iter_mut().find_map(Option::take));
    spare.ok().flatten().unwrap_or_else(|| Box::new(Context::new()))
}

fn give_back(mut context: Box<Context>) {
    let _ = SPARE.try_with(|spare| {
        if let Some(free) = spare.borrow_mut().iter_mut().find(|slot| slot.is_none()) {
            context.0.reset(false);
            *free = Some(context);
        }
    });
}

/// The thread's piece of memory that messages are inflated into; given back when it goes out of scope. Its data is what
/// has been inflated.
///
/// It isn't borrowed from the thread-local but taken out: a callback that decodes something itself gets another one.
pub(crate) struct Chunk {
    /// [`CHUNK`] bytes.
    memory: Vec<u8>,
    /// How many of them are data.
    filled: usize,
}

impl Chunk {
    pub(crate) fn new() -> Self {
        let mut memory = CHUNK_MEMORY.try_with(Cell::take).unwrap_or_default();
        if memory.is_empty() {
            memory = vec![0; CHUNK];
        }
        Self { memory, filled: 0 }
    }

    fn is_full(&self) -> bool {
        self.filled == self.memory.len()
    }

    /// What isn't filled yet.
    fn room(&mut self) -> &mut [u8] {
        &mut self.memory[self.filled..]
    }

    fn clear(&mut self) {
        self.filled = 0;
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[..self.filled]
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        let _ = CHUNK_MEMORY.try_with(|cell| cell.set(memory));
    }
}
