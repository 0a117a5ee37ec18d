//! What the benchmark tools share: command line flags, the sample handshake of RFC 6455, frame headers, answers to HTTP
//! requests, a latency histogram and the course of a run. `wsload` and `httpload` generate the load, `wslimit` and
//! `wsframes` are the limits that servers are compared with.

pub mod args;
pub mod frame;
pub mod handshake;
pub mod histogram;
pub mod http;
pub mod limit;
pub mod pacing;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the server under test does: each message back to its sender, or to everybody, or it speaks unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A message goes back to the connection that sent it.
    Echo,
    /// A message goes to every connection, the sender too.
    Fan,
    /// The server sends on its own, the same to every connection.
    Listen,
}

impl Mode {
    /// The word for this mode on the command line and in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Fan => "fan",
            Self::Listen => "listen",
        }
    }
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "echo" => Ok(Self::Echo),
            "fan" => Ok(Self::Fan),
            "listen" => Ok(Self::Listen),
            _ => Err("is none of echo, fan and listen".to_owned()),
        }
    }
}

/// Allows as many open files as the system grants this process; thousands of connections need them.
///
/// # Errors
/// When the system refuses to raise the soft limit to the hard one.
pub fn raise_open_files() -> std::io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(())
}
