//! A descriptor that a program can wait on: readable from [`Wake::signal`] to [`Wake::clear`].
//!
//! Made only when somebody waits or asks for the descriptor: a program that polls once a frame never pays for it.

use std::io;
use std::time::Duration;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// The descriptor is readable.
    Ready,
    /// The time is up.
    TimedOut,
    /// A signal arrived; the caller looks whether it is Ctrl-C.
    Interrupted,
}

#[cfg(target_os = "linux")]
mod sys {
    use nix::sys::eventfd::{EfdFlags, EventFd};
    use std::io;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

    /// Linux: one eventfd, half the descriptors of a pair.
    #[derive(Debug)]
    pub(super) struct Pair(EventFd);

    impl Pair {
        pub(super) fn new() -> io::Result<Self> {
            Ok(Self(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
        }
        pub(super) fn write(&self) {
            // EAGAIN means the counter is full, so the descriptor is readable already.
            let _ = self.0.write(1);
        }
        pub(super) fn drain(&self) {
            let _ = self.0.read();
        }
        pub(super) fn raw(&self) -> i64 {
            i64::from(self.0.as_raw_fd())
        }
        pub(super) fn fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

#[cfg(all(unix, not(target_os = "linux")))]
mod sys {
    use std::io::{self, Read, Write};
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
    use std::os::unix::net::UnixStream;

    /// Other Unix: a socket pair.
    #[derive(Debug)]
    pub(super) struct Pair {
        rx: UnixStream,
        tx: UnixStream,
    }

    impl Pair {
        pub(super) fn new() -> io::Result<Self> {
            let (rx, tx) = UnixStream::pair()?;
            rx.set_nonblocking(true)?;
            tx.set_nonblocking(true)?;
            Ok(Self { rx, tx })
        }
        pub(super) fn write(&self) {
            let _ = (&self.tx).write(&[1]);
        }
        pub(super) fn drain(&self) {
            let mut buf = [0; 64];
            while matches!((&self.rx).read(&mut buf), Ok(n) if n > 0) {}
        }
        pub(super) fn raw(&self) -> i64 {
            i64::from(self.rx.as_raw_fd())
        }
        pub(super) fn fd(&self) -> BorrowedFd<'_> {
            self.rx.as_fd()
        }
    }
}

#[cfg(windows)]
mod sys {
    use std::io::{self, Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::windows::io::AsRawSocket;

    /// Windows selects on sockets alone: a loopback connection with itself.
    #[derive(Debug)]
    pub(super) struct Pair {
        pub(super) rx: TcpStream,
        tx: TcpStream,
    }

    impl Pair {
        pub(super) fn new() -> io::Result<Self> {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let tx = TcpStream::connect(listener.local_addr()?)?;
            // Somebody else on this machine may connect first: only our own socket counts.
            let rx = loop {
                let (rx, peer) = listener.accept()?;
                if peer == tx.local_addr()? {
                    break rx;
                }
            };
            tx.set_nodelay(true)?;
            tx.set_nonblocking(true)?;
            Ok(Self { rx, tx })
        }
        pub(super) fn write(&self) {
            let _ = (&self.tx).write(&[1]);
        }
        pub(super) fn drain(&self) {
            let mut buf = [0; 64];
            let _ = self.rx.set_nonblocking(true);
            while matches!((&self.rx).read(&mut buf), Ok(n) if n > 0) {}
            let _ = self.rx.set_nonblocking(false);
        }
        pub(super) fn raw(&self) -> i64 {
            self.rx.as_raw_socket() as i64
        }
    }
}

/// The descriptor; see the module.
#[derive(Debug)]
pub struct Wake(sys::Pair);

impl Wake {
    /// Makes the descriptor.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(sys::Pair::new()?))
    }

    /// Makes it readable. Never blocks; from any thread.
    pub fn signal(&self) {
        self.0.write();
    }

    /// Makes it unreadable again.
    pub fn clear(&self) {
        self.0.drain();
    }

    /// The number to hand to `select` and its relatives.
    #[must_use]
    pub fn raw(&self) -> i64 {
        self.0.raw()
    }

    /// Blocks until readable, until `timeout` has passed (`None`: without end), or until a signal.
    #[cfg(unix)]
    #[must_use]
    pub fn wait(&self, timeout: Option<Duration>) -> Waited {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        // To the nanosecond where the system has ppoll; elsewhere to the millisecond, rounded up, so that 0.2 ms does not
        // become a spinning poll of 0 ms. Longer than it can tell is as good as without end.
        let limit = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut [PollFd::from_borrowed_fd(self.0.fd(), PollFlags::IN)], limit.as_ref()) {
            Ok(0) => Waited::TimedOut,
            Ok(_) => Waited::Ready,
            Err(_) => Waited::Interrupted,
        }
    }

    /// Blocks until readable or until `timeout` has passed. There is no EINTR on Windows: waits are cut into
    /// slices of 50 ms, after each of which the caller looks for Ctrl-C.
    #[cfg(windows)]
    #[must_use]
    pub fn wait(&self, timeout: Option<Duration>) -> Waited {
        const SLICE: Duration = Duration::from_millis(50);
        let limit = timeout.map_or(SLICE, |t| t.min(SLICE));
        if limit.is_zero() || self.0.rx.set_read_timeout(Some(limit)).is_err() {
            return Waited::TimedOut;
        }
        match self.0.rx.peek(&mut [0]) {
            Ok(_) => Waited::Ready,
            Err(_) if timeout.is_some_and(|t| t <= SLICE) => Waited::TimedOut,
            Err(_) => Waited::Interrupted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn readable_from_signal_to_clear() {
        let wake = Wake::new().unwrap();
        assert_eq!(wake.wait(Some(Duration::ZERO)), Waited::TimedOut);
        wake.signal();
        wake.signal();
        assert_eq!(wake.wait(None), Waited::Ready);
        wake.clear();
        assert_eq!(wake.wait(Some(Duration::from_micros(10))), Waited::TimedOut);
    }

    #[test]
    fn a_wait_is_never_shorter_than_asked_for() {
        let wake = Wake::new().unwrap();
        for micros in [50, 200, 1_700] {
            let began = Instant::now();
            assert_eq!(wake.wait(Some(Duration::from_micros(micros))), Waited::TimedOut);
            assert!(began.elapsed() >= Duration::from_micros(micros));
        }
    }
}
