//! A root as the files of one request are looked for in it. The root is opened anew for each: a build tool may have
//! replaced the folder, or a link to it, in the meantime.
//!
//! | reach | how | where |
//! |---|---|---|
//! | `Confined` | cap-std: no path and no symbolic link leads out | blocking threads |
//! | `Anywhere` | links are followed wherever they lead (`follow_symlinks`) | blocking threads |
//! | `Cached` | confined, and only what the kernel answers from memory; see [`super::cached`] | I/O threads |

#[cfg(target_os = "linux")]
use super::cached::Cached;
use cap_std::ambient_authority;
use cap_std::fs::{Dir, Metadata, OpenOptions};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    /// A FIFO, a socket, a device: never opened, since that may wait, or do something.
    Other,
}

fn kind_of(is_file: bool, is_dir: bool) -> Kind {
    match (is_file, is_dir) {
        (true, _) => Kind::File,
        (_, true) => Kind::Directory,
        _ => Kind::Other,
    }
}

/// An entry of a directory.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: OsString,
    pub(super) directory: bool,
}

#[derive(Debug)]
pub(super) enum Tree<'a> {
    Confined(Dir, &'a Path),
    Anywhere(&'a Path),
    #[cfg(target_os = "linux")]
    Cached(Cached<'a>),
}

/// cap-std has no empty path.
fn named(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// A FIFO put in a file's place after it was looked at must not keep us waiting.
#[cfg(unix)]
fn flags() -> i32 {
    use rustix::fs::OFlags;
    (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed()
}

/// Opens a regular file anywhere.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags());
    options.open(path)
}

fn lost() -> io::Error {
    io::ErrorKind::NotFound.into()
}

/// Does something inside `dir`. cap-std refuses every absolute link, also one that stays inside: its target is looked up
/// in full then, and done with as if it had been asked for.
fn confined<T>(dir: &Dir, root: &Path, path: &Path, act: impl Fn(&Dir, &Path) -> io::Result<T>) -> io::Result<T> {
    match act(dir, named(path)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let (whole, root) = (fs::canonicalize(root.join(path))?, fs::canonicalize(root)?);
            act(dir, named(whole.strip_prefix(&root).map_err(|_| lost())?))
        }
        done => done,
    }
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: &'a Path, follow_symlinks: bool) -> io::Result<Self> {
        if follow_symlinks {
            return Ok(Self::Anywhere(root));
        }
        Ok(Self::Confined(Dir::open_ambient_dir(root, ambient_authority())?, root))
    }

    /// What is there, links followed.
    pub(super) fn kind(&self, path: &Path) -> io::Result<Kind> {
        match self {
            Self::Confined(dir, root) => {
                let found: Metadata = confined(dir, root, path, |dir, path| dir.metadata(path))?;
                Ok(kind_of(found.is_file(), found.is_dir()))
            }
            Self::Anywhere(root) => {
                let found = fs::metadata(root.join(path))?;
                Ok(kind_of(found.is_file(), found.is_dir()))
            }
            #[cfg(target_os = "linux")]
            Self::Cached(cached) => cached.kind(path),
        }
    }

    /// Opens what `kind` has called a file.
    pub(super) fn file(&self, path: &Path) -> io::Result<File> {
        match self {
            Self::Confined(dir, root) => confined(dir, root, path, |dir, path| {
                let mut options = OpenOptions::new();
                options.read(true);
                #[cfg(unix)]
                cap_std::fs::OpenOptionsExt::custom_flags(&mut options, flags());
                Ok(dir.open_with(path, &options)?.into_std())
            }),
            Self::Anywhere(root) => open(&root.join(path)),
            #[cfg(target_os = "linux")]
            Self::Cached(cached) => cached.file(path),
        }
    }

    /// The files and directories of a directory, at most so many, and whether there are more. What could not be served,
    /// such as a link that leads out, is left out.
    pub(super) fn entries(
        &self,
        path: &Path,
        most: usize,
        wanted: impl Fn(&OsString) -> bool,
    ) -> io::Result<(Vec<Entry>, bool)> {
        let names: Box<dyn Iterator<Item = io::Result<OsString>>> = match self {
            Self::Confined(dir, root) => {
                let found = confined(dir, root, path, |dir, path| dir.read_dir(path))?;
                Box::new(found.map(|entry| entry.map(|e| e.file_name())))
            }
            Self::Anywhere(root) => Box::new(fs::read_dir(root.join(path))?.map(|entry| entry.map(|e| e.file_name()))),
            #[cfg(target_os = "linux")]
            Self::Cached(_) => return Err(io::ErrorKind::WouldBlock.into()),
        };
        let mut entries = Vec::new();
        for name in names {
            let name = name?;
            if !wanted(&name) {
                continue;
            }
            let whole: PathBuf = path.join(&name);
            let directory = match self.kind(&whole) {
                Ok(Kind::File) => false,
                Ok(Kind::Directory) => true,
                Ok(Kind::Other) | Err(_) => continue,
            };
            if entries.len() == most {
                return Ok((entries, true));
            }
            entries.push(Entry { name, directory });
        }
        Ok((entries, false))
    }

    /// Reads at an offset, as far as it gets.
    pub(super) fn read(&self, file: &File, buf: &mut [u8], at: u64) -> io::Result<usize> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Cached(_) => super::cached::read(file, buf, at),
            _ => read_at(file, buf, at),
        }
    }
}

/// Reads at an offset until `buf` is full or the file ends.
pub(super) fn read_at(file: &File, buf: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        #[cfg(unix)]
        let read = std::os::unix::fs::FileExt::read_at(file, &mut buf[done..], at + done as u64);
        #[cfg(windows)]
        let read = std::os::windows::fs::FileExt::seek_read(file, &mut buf[done..], at + done as u64);
        match read {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
