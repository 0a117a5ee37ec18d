//! wslimit: the smallest WebSocket server that can echo and fan out, on one epoll thread; see `pyhv_load::limit`.
//!
//! It is the limit that servers are measured against.

use std::convert::Infallible;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use pyhv_load::Mode;
use pyhv_load::args::{Flags, Tool};
use pyhv_load::limit::Server;

const USAGE: &str = "\
wslimit: WebSocket echo or fan-out server, as the limit to compare with; runs until it is killed
  --port N          port to listen on (required)
  --host ADDRESS    address to listen on (127.0.0.1)
  --mode echo|fan   back to the sender (default), or to every connection";

fn serve(address: SocketAddr, mode: Mode) -> Result<Infallible, Box<dyn Error>> {
    let mut server = Server::bind(address, mode)?;
    loop {
        server.poll(None)?;
    }
}

fn options(flags: &Flags) -> Result<(SocketAddr, Mode), String> {
    let host: IpAddr = flags.get("host", IpAddr::from([127, 0, 0, 1]))?;
    let address = SocketAddr::new(host, flags.required("port")?);
    match flags.get("mode", Mode::Echo)? {
        Mode::Listen => Err("--mode listen: this server never speaks unasked".to_owned()),
        mode => Ok((address, mode)),
    }
}

fn main() -> ExitCode {
    let tool = Tool { name: "wslimit", usage: USAGE, flags: &["port", "host", "mode"] };
    tool.main(options, |&(address, mode)| match serve(address, mode)? {})
}
