//! What a form held: text fields, and files in memory or in temporary files that go away with them.

use crate::endpoint::{Endpoint, Live};
use crate::runtime;
use bytes::Bytes;
use parking_lot::Mutex;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use tempfile::TempPath;

/// What a `multipart/form-data` body held, in the order of its parts.
#[derive(Debug, Default)]
pub struct Form {
    /// The text fields: name and value.
    pub fields: Vec<(String, String)>,
    /// The files.
    pub files: Vec<Arc<Upload>>,
}

impl Form {
    /// Bytes that it keeps in memory.
    #[must_use]
    pub fn in_memory(&self) -> usize {
        let fields = self.fields.iter().map(|(name, value)| name.len() + value.len());
        let files = self.files.iter().map(|file| match &*file.place.lock() {
            Place::Memory(bytes) => bytes.len(),
            _ => 0,
        });
        fields.chain(files).sum()
    }
}

/// Whether a content is an `application/x-www-form-urlencoded` form.
#[must_use]
pub fn is_urlencoded(headers: &http::HeaderMap) -> bool {
    crate::server::form::is_urlencoded(headers)
}

/// The pairs of an `application/x-www-form-urlencoded` body, as the WHATWG URL standard has them (section 5.1): a "%"
/// without two hexadecimal digits stands for itself, what is no UTF-8 becomes U+FFFD.
pub fn urlencoded(body: &[u8]) -> impl Iterator<Item = (String, String)> {
    form_urlencoded::parse(body).map(|(name, value)| (name.into_owned(), value.into_owned()))
}

/// A file of a form.
#[derive(Debug)]
pub struct Upload {
    /// The name of its field.
    pub name: String,
    /// The name of the file as sent: not to be trusted.
    pub filename: String,
    /// The type as sent.
    pub content_type: String,
    /// Bytes.
    pub size: u64,
    /// Where the bytes are. Guards it while it is read or changed.
    place: Mutex<Place>,
}

/// Where the bytes of an upload are.
#[derive(Debug)]
pub(crate) enum Place {
    Memory(Bytes),
    Temporary(Temp),
    /// The program has moved the temporary file there: it is the program's.
    Moved(PathBuf),
}

/// Where to read an upload.
#[derive(Clone, Debug)]
pub enum Content {
    /// The bytes.
    Bytes(Bytes),
    /// A file with them.
    File(PathBuf),
}

impl Upload {
    pub(crate) fn new(name: String, filename: String, content_type: String, size: u64, place: Place) -> Arc<Self> {
        Arc::new(Self { name, filename, content_type, size, place: Mutex::new(place) })
    }

    /// Where its bytes are.
    #[must_use]
    pub fn content(&self) -> Content {
        match &*self.place.lock() {
            Place::Memory(bytes) => Content::Bytes(bytes.clone()),
            Place::Temporary(temp) => Content::File(temp.path().to_owned()),
            Place::Moved(path) => Content::File(path.clone()),
        }
    }

    /// Whether it is in a temporary file, which may be moved.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(&*self.place.lock(), Place::Temporary(_))
    }

    /// The program has moved the temporary file.
    pub fn moved(&self, to: PathBuf) {
        let before = std::mem::replace(&mut *self.place.lock(), Place::Moved(to));
        if let Place::Temporary(mut temp) = before {
            temp.forget();
        }
    }
}

/// A temporary file, closed between writes, so that waiting uploads hold no descriptor; deleted when it is dropped.
#[derive(Debug)]
pub(crate) struct Temp {
    /// `None` once somebody else sees to it.
    path: Option<TempPath>,
    endpoint: Weak<Endpoint>,
    /// [`runtime::forks`] when it was made: the child of a fork leaves its parent's files alone.
    forks: u32,
}

impl Temp {
    /// Blocks.
    pub(crate) fn create(directory: Option<&Path>, endpoint: &Arc<Endpoint>) -> io::Result<(Self, File)> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("pyhv-upload-");
        let made = match directory {
            Some(directory) => builder.tempfile_in(directory)?,
            None => builder.tempfile()?,
        };
        let (file, path) = made.into_parts();
        Ok((Self { path: Some(path), endpoint: Arc::downgrade(endpoint), forks: runtime::forks() }, file))
    }

    fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    fn forget(&mut self) {
        if let Some(mut path) = self.path.take() {
            path.disable_cleanup(true);
        }
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if self.forks != runtime::forks() {
            self.forget();
            return;
        }
        let Some(path) = self.path.take() else { return };
        // Deleting a large file may block: not on an I/O thread. The endpoint is busy until it is done, so that a
        // program that ends after `stop()` leaves nothing behind.
        if let (Ok(io), Some(endpoint)) = (tokio::runtime::Handle::try_current(), self.endpoint.upgrade()) {
            let live = Live::new(&endpoint);
            io.spawn_blocking(move || {
                drop(path);
                drop(live);
            });
        }
    }
}

/// An upload being received: first into memory, then into a file.
#[derive(Debug)]
pub(crate) struct Receiving {
    endpoint: Arc<Endpoint>,
    /// What is not in the file.
    data: Vec<u8>,
    file: Option<(Temp, File)>,
    size: u64,
}

/// Bytes that are gathered for one write: each is a hop to another thread and back.
const BLOCK: usize = 256 << 10;

impl Receiving {
    pub(crate) fn new(endpoint: &Arc<Endpoint>) -> Self {
        Self { endpoint: Arc::clone(endpoint), data: Vec::new(), file: None, size: 0 }
    }

    /// One more piece. `room`: bytes that may be in memory. Waits until they are written that have to be.
    pub(crate) async fn push(&mut self, piece: &[u8], room: usize) -> io::Result<()> {
        self.size += piece.len() as u64;
        self.data.extend_from_slice(piece);
        let most = if self.file.is_some() { BLOCK } else { room };
        if self.data.len() > most { self.write().await } else { Ok(()) }
    }

    /// Bytes that will stay in memory.
    pub(crate) fn in_memory(&self) -> usize {
        if self.file.is_some() { 0 } else { self.data.len() }
    }

    /// Writes what is in memory, on a thread that may block. Cancelled, that thread finishes the write and deletes the
    /// file.
    async fn write(&mut self) -> io::Result<()> {
        let (endpoint, file, mut data) = (Arc::clone(&self.endpoint), self.file.take(), std::mem::take(&mut self.data));
        let live = Live::new(&endpoint);
        let written = tokio::task::spawn_blocking(move || {
            let _live = live;
            let (temp, mut file) = match file {
                Some(file) => file,
                None => Temp::create(endpoint.settings.upload_dir.as_deref(), &endpoint)?,
            };
            file.write_all(&data)?;
            data.clear();
            data.shrink_to(BLOCK);
            Ok::<_, io::Error>((temp, file, data))
        });
        let (temp, file, data) = written.await.map_err(io::Error::other)??;
        self.file = Some((temp, file));
        self.data = data;
        Ok(())
    }

    /// It is there: its place and size.
    pub(crate) async fn finish(mut self) -> io::Result<(Place, u64)> {
        if self.file.is_some() && !self.data.is_empty() {
            self.write().await?;
        }
        let place = match self.file {
            Some((temp, _)) => Place::Temporary(temp),
            None => {
                self.data.shrink_to_fit();
                Place::Memory(self.data.into())
            }
        };
        Ok((place, self.size))
    }
}
