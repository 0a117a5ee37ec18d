//! A look at files that cannot block: for the I/O thread, which has every connection of the process to serve. Handing a
//! small file to another thread costs more than reading it from memory, and a file server's files are in memory.
//!
//! Only what the kernel has at hand is touched: paths with RESOLVE_CACHED (since Linux 5.12; io_uring opens files so,
//! before it goes to a thread), on the file system of the root alone, and only if that is a local one, since a file of a
//! network mount may be asked for at its server though its name is cached; content with RWF_NOWAIT. Everything else is
//! `WouldBlock`, for a blocking thread to do again.

use super::tree::Kind;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags, fstatfs, openat2, statx};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The kernel, or the sandbox that we are in, does not know these calls.
static UNKNOWN: AtomicBool = AtomicBool::new(false);

/// File systems (statfs(2)) that answer from memory what is in memory: ext, XFS, Btrfs, F2FS, EROFS, tmpfs, overlayfs.
const LOCAL: [u64; 7] = [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010, 0xE0F5_E1E2, 0x0102_1994, 0x794C_7630];

/// The file system of a root, as far as it is known; 0: not, or not a local one.
#[derive(Debug, Default)]
pub(super) struct Local(AtomicU64);

fn device(major: u32, minor: u32) -> u64 {
    u64::from(major) << 32 | u64::from(minor)
}

impl Local {
    /// Learns it, anew each time: the root may be another now. Blocks.
    pub(super) fn learn(&self, root: &Path) {
        if UNKNOWN.load(Ordering::Relaxed) {
            return;
        }
        let look = || -> Result<u64, Errno> {
            let root = openat2(CWD, root, PATH | OFlags::DIRECTORY, Mode::empty(), ResolveFlags::empty())?;
            let kind = fstatfs(&root)?.f_type;
            if !LOCAL.contains(&u64::try_from(kind).unwrap_or(0)) {
                return Ok(0);
            }
            let found = statx(&root, c"", AtFlags::EMPTY_PATH, StatxFlags::INO)?;
            Ok(device(found.stx_dev_major, found.stx_dev_minor))
        };
        self.0.store(look().unwrap_or(0), Ordering::Relaxed);
    }
}

const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
/// Without a link there is no way out of the root, since no path here has a `..`: one walk from `/` does.
const STRAIGHT: ResolveFlags = ResolveFlags::CACHED.union(ResolveFlags::NO_SYMLINKS);
/// With links: by the root's descriptor.
const BENEATH: ResolveFlags =
    ResolveFlags::CACHED.union(ResolveFlags::BENEATH).union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

#[derive(Debug)]
pub(super) struct Cached<'a> {
    root: &'a Path,
    device: u64,
}

fn would_block() -> io::Error {
    io::ErrorKind::WouldBlock.into()
}

/// That something is not there is known for certain; whatever else fails is looked at again by a blocking thread.
fn failed(error: Errno) -> io::Error {
    match error {
        Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => error.into(),
        Errno::NOSYS | Errno::PERM | Errno::INVAL => {
            UNKNOWN.store(true, Ordering::Relaxed);
            would_block()
        }
        _ => would_block(),
    }
}

impl<'a> Cached<'a> {
    pub(super) fn new(root: &'a Path, local: &Local) -> io::Result<Self> {
        let device = local.0.load(Ordering::Relaxed);
        if device == 0 || UNKNOWN.load(Ordering::Relaxed) {
            return Err(would_block());
        }
        Ok(Self { root, device })
    }

    fn open(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let open = |at: BorrowedFd<'_>, path: &Path, flags, how| openat2(at, path, flags, Mode::empty(), how);
        match open(CWD, &self.root.join(path), flags, STRAIGHT) {
            Err(Errno::LOOP) => {
                let root = open(CWD, self.root, PATH | OFlags::DIRECTORY, ResolveFlags::CACHED).map_err(failed)?;
                let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
                open(root.as_fd(), path, flags, BENEATH).map_err(failed)
            }
            done => done.map_err(failed),
        }
    }

    pub(super) fn kind(&self, path: &Path) -> io::Result<Kind> {
        let found = self.open(path, PATH)?;
        let found = statx(found, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE)?;
        if device(found.stx_dev_major, found.stx_dev_minor) != self.device {
            // Another file system was mounted there.
            return Err(would_block());
        }
        Ok(match FileType::from_raw_mode(found.stx_mode.into()) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            _ => Kind::Other,
        })
    }

    pub(super) fn file(&self, path: &Path) -> io::Result<File> {
        Ok(self.open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC)?.into())
    }
}

/// Fills `buf` from memory, or not at all.
pub(super) fn read(file: &File, buf: &mut [u8], at: u64) -> io::Result<usize> {
    let wanted = buf.len();
    match preadv2(file.as_fd(), &mut [IoSliceMut::new(buf)], at, ReadWriteFlags::NOWAIT) {
        Ok(n) if n == wanted => Ok(n),
        // A part of it is not in memory, or the file has become shorter, or the file system cannot tell.
        _ => Err(would_block()),
    }
}
