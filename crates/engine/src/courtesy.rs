//! Giving way to the program's thread.
//!
//! A tick's answers to a thousand peers keep the I/O thread busy for milliseconds. Where both threads share a core, as in a
//! container with one, the system lets a thread that has its turn run until the next timer interrupt, 4 ms at 250 Hz: so
//! much later a frame ended whose own work was interrupted for it. Offering the core in between hands it back as
//! soon as the I/O thread has had its fair share. Where nobody wants the core it costs one cheap system call.

/// Connections served between two offers: some 60 µs of work. Half as many cost 3 % of an echo's throughput.
const PORTION: usize = 16;

/// Counts what the I/O thread serves in a row.
#[derive(Debug, Default)]
pub(crate) struct Courtesy {
    served: usize,
}

impl Courtesy {
    /// Another connection was served: offers the core after each portion.
    pub(crate) fn served(&mut self) {
        self.served += 1;
        if self.served == PORTION {
            self.served = 0;
            std::thread::yield_now();
        }
    }
}
