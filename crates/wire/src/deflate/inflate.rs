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
use flate2::{Decompress, FlushDecompress, Status};
use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};

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
    static SPARE: RefCell<[Option<Box<Decompress>>; SPARES]> = const { RefCell::new([const { None }; SPARES]) };
    /// The memory of the [`Chunk`], when none is in use.
    static CHUNK_MEMORY: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The receiving side of one connection.
#[derive(Debug)]
pub(crate) struct Inflation {
    /// Held during a compressed message, and from the first one on if the peer takes its context over.
    context: Option<Box<Decompress>>,
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
            run(context, &mut self.ended, piece, chunk, &mut on_full)?;
        }
        if last { self.finish() } else { Ok(()) }
    }

    /// The message has no more payload: checks that it is complete, and gives the context back.
    fn finish(&mut self) -> Result<(), Violation> {
        let complete = match (self.last_byte.take(), &mut self.context) {
            (Some(byte), Some(context)) if !self.ended => {
                let has_tail = byte == 0xff;
                ends_here(context, has_tail, self.takes_over)
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
    context: &mut Decompress,
    ended: &mut bool,
    mut input: &[u8],
    chunk: &mut Chunk,
    on_full: &mut impl FnMut(&[u8]) -> Result<(), Violation>,
) -> Result<(), Violation> {
    loop {
        if chunk.len() == chunk.capacity() {
            let taken = on_full(chunk);
            chunk.clear();
            taken?;
        }
        if *ended {
            context.reset(false);
            *ended = false;
        }
        let (before, filled) = (context.total_in(), chunk.len());
        let status = context.decompress_vec(input, chunk, FlushDecompress::None);
        // The cast loses nothing: it's no more than `input` has.
        let used = (context.total_in() - before) as usize;
        input = &input[used..];
        match status {
            Err(_) => return Err(violation::DEFLATE_CORRUPT),
            Ok(Status::StreamEnd) => {
                *ended = true;
                if input.is_empty() {
                    return Ok(());
                }
            }
            // A full chunk may mean that there's more to come from the bytes it has taken.
            Ok(_) if chunk.len() == chunk.capacity() => {}
            Ok(_) if input.is_empty() => return Ok(()),
            // It takes all input there is or fills all room there is. Should it ever not, this isn't an endless loop.
            Ok(_) if used == 0 && chunk.len() == filled => return Err(violation::DEFLATE_CORRUPT),
            Ok(_) => {}
        }
    }
}

/// Puts the tail on, unless the sender left it there, and looks whether the payload ended where a block may begin.
///
/// zlib doesn't tell where it is in a block. But an empty stored block put in yields nothing exactly if one may begin
/// there: elsewhere its bytes are data, or codes, or wrong. If the context isn't needed any more the block has BFINAL set,
/// and the stream's end proves it. If it is needed, the block can't; then only a payload that ends inside the code
/// lengths of a dynamic block passes, and the next message will fail.
fn ends_here(context: &mut Decompress, has_tail: bool, keep: bool) -> bool {
    let last_block = [u8::from(!keep), 0x00, 0x00, 0xff, 0xff];
    let mut end = [0; 9];
    end[..4].copy_from_slice(&TAIL);
    end[4..].copy_from_slice(&last_block);
    let end = if has_tail { &end[4..] } else { &end[..] };

    let (before_in, before_out) = (context.total_in(), context.total_out());
    let mut nothing = [0; 16];
    let status = context.decompress(end, &mut nothing, FlushDecompress::None);
    let as_expected = match status {
        Ok(Status::StreamEnd) => !keep,
        Ok(Status::Ok | Status::BufError) => keep,
        Err(_) => false,
    };
    as_expected && context.total_out() == before_out && context.total_in() - before_in == end.len() as u64
}

/// A context that is as new.
fn spare() -> Box<Decompress> {
    // The thread-local is gone only while the thread ends.
    let spare = SPARE.try_with(|spare| spare.borrow_mut().iter_mut().find_map(Option::take));
    spare.ok().flatten().unwrap_or_else(|| Box::new(Decompress::new(false)))
}

fn give_back(mut context: Box<Decompress>) {
    let _ = SPARE.try_with(|spare| {
        if let Some(free) = spare.borrow_mut().iter_mut().find(|slot| slot.is_none()) {
            // In place: flate2 does that for the full window, and makes a new one of any other.
            context.reset(false);
            *free = Some(context);
        }
    });
}

/// The thread's piece of memory that messages are inflated into; given back when it goes out of scope.
///
/// It isn't borrowed from the thread-local but taken out: a callback that decodes something itself gets another one.
pub(crate) struct Chunk(Vec<u8>);

impl Chunk {
    pub(crate) fn new() -> Self {
        let mut memory = CHUNK_MEMORY.try_with(Cell::take).unwrap_or_default();
        memory.clear();
        memory.reserve_exact(CHUNK);
        Self(memory)
    }
}

impl Deref for Chunk {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Chunk {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.0);
        let _ = CHUNK_MEMORY.try_with(|cell| cell.set(memory));
    }
}
