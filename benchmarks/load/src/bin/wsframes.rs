//! wsframes: what a 60 Hz main loop costs whose network is `pyhv_load::limit`, pumped once a frame.
//!
//! It is the limit that servers in a main loop are measured against: same frames, clients and figures as `peers/frames.py`.

use std::error::Error;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use pyhv_load::Mode;
use pyhv_load::args::{Flags, Tool};
use pyhv_load::limit::Server;
use rustix::time::{ClockId, clock_gettime};

const USAGE: &str = "\
wsframes: frames of a main loop with a WebSocket server in it, as the limit to compare with; runs until it is killed
  --port N           port to listen on (required)
  --mode echo|listen each message back to its sender (default), or 200 bytes to every connection in each frame
  --clients N        connections to wait for before it measures (0)
  --seconds N        time measured, after which a line of JSON is printed (5)
  --work-us N        CPU time that a frame takes besides (1100: what frames.py takes)";

const FRAME: Duration = Duration::from_nanos(16_666_667);
/// From the last client's arrival to the measurement.
const SETTLE: Duration = Duration::from_secs(1);
/// So many frames too late are too many: the schedule begins anew.
const HOPELESS: Duration = Duration::from_secs(1);
const MESSAGE: [u8; 200] = [b'm'; 200];
/// The shares of frames whose end is told, with their names.
const SHARES: [(f64, &str); 11] = [
    (0.01, "0.01"),
    (0.05, "0.05"),
    (0.1, "0.1"),
    (0.25, "0.25"),
    (0.5, "0.5"),
    (0.75, "0.75"),
    (0.9, "0.9"),
    (0.95, "0.95"),
    (0.98, "0.98"),
    (0.99, "0.99"),
    (1.0, "1"),
];

struct Options {
    address: SocketAddr,
    mode: Mode,
    clients: usize,
    seconds: f64,
    work: f64,
}

/// One measured frame, in seconds.
struct Frame {
    cpu: f64,
    network: f64,
    /// From when it was due to begin.
    end: f64,
}

fn cpu(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0)).as_secs_f64()
}

/// What the program would do anyway.
fn work(seconds: f64) {
    let until = cpu(ClockId::ThreadCPUTime) + seconds;
    while cpu(ClockId::ThreadCPUTime) < until {
        for number in 0..1000_u32 {
            std::hint::black_box(number);
        }
    }
}

/// Answers each message that is there; looks until nothing is.
fn answer(server: &mut Server) -> Result<usize, Box<dyn Error>> {
    // As many as a poll returns may be all there were, or not.
    while server.poll(Some(Duration::ZERO))? >= 1024 {}
    Ok(server.take_answered())
}

fn run(options: &Options) -> Result<String, Box<dyn Error>> {
    let mut server = Server::bind(options.address, Mode::Echo)?;
    while server.connections() < options.clients {
        server.poll(None)?;
    }
    let mut due = Instant::now();
    let begin = due + SETTLE;
    let (mut frames, mut handled, mut process) = (Vec::new(), 0, 0.0);
    let mut printed = false;
    loop {
        let before = cpu(ClockId::ThreadCPUTime);
        let answered = answer(&mut server)?;
        if options.mode == Mode::Listen {
            server.broadcast(&MESSAGE);
        }
        let network = cpu(ClockId::ThreadCPUTime) - before;
        work(options.work);
        let now = Instant::now();
        if now < begin {
            process = cpu(ClockId::ProcessCPUTime);
        } else if !printed {
            let whole = cpu(ClockId::ThreadCPUTime) - before;
            frames.push(Frame { cpu: whole, network, end: (now - due).as_secs_f64() });
            handled += answered;
            let seconds = (now - begin).as_secs_f64();
            if seconds >= options.seconds {
                println!("{}", report(&frames, cpu(ClockId::ProcessCPUTime) - process, handled, seconds));
                std::io::stdout().flush()?;
                printed = true;
            }
        }
        due += FRAME;
        let now = Instant::now();
        match due.checked_duration_since(now) {
            Some(wait) => sleep(wait),
            None if now - due > HOPELESS => due = now,
            None => {}
        }
    }
}

/// As `frames.py` reports; times in milliseconds.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // some thousand frames
fn report(frames: &[Frame], process: f64, handled: usize, seconds: f64) -> String {
    let count = frames.len() as f64;
    let mean = |value: fn(&Frame) -> f64| frames.iter().map(value).sum::<f64>() / count * 1e3;
    let mut ends: Vec<f64> = frames.iter().map(|frame| frame.end * 1e3).collect();
    ends.sort_unstable_by(f64::total_cmp);
    let end = |share: f64| ends[((count * share) as usize).min(ends.len() - 1)];
    let shares: Vec<String> = SHARES.iter().map(|&(share, name)| format!("\"{name}\":{:.3}", end(share))).collect();
    format!(
        "{{\"frames\":{count},\"frames_per_s\":{:.1},\"handled_per_frame\":{:.1},\"process_ms\":{:.3},\
         \"main_ms\":{:.3},\"network_ms\":{:.3},\"end_p50_ms\":{:.3},\"end_p99_ms\":{:.3},\"end_ms\":{{{}}},\
         \"late\":{}}}",
        count / seconds,
        handled as f64 / count,
        process / count * 1e3,
        mean(|frame| frame.cpu),
        mean(|frame| frame.network),
        end(0.5),
        end(0.99),
        shares.join(","),
        frames.iter().filter(|frame| frame.end > FRAME.as_secs_f64()).count(),
    )
}

fn options(flags: &Flags) -> Result<Options, String> {
    let mode = match flags.get("mode", Mode::Echo)? {
        Mode::Fan => return Err("--mode fan: is none of echo and listen".to_owned()),
        mode => mode,
    };
    Ok(Options {
        address: SocketAddr::new(IpAddr::from([127, 0, 0, 1]), flags.required("port")?),
        mode,
        clients: flags.get("clients", 0)?,
        seconds: flags.get("seconds", 5.0)?,
        work: flags.get("work-us", 1100.0)? / 1e6,
    })
}

fn main() -> ExitCode {
    let tool = Tool { name: "wsframes", usage: USAGE, flags: &["port", "mode", "clients", "seconds", "work-us"] };
    tool.main(options, run)
}
