//! Files as answers: trees that are served without the program, and single files that the program answers with. Nothing
//! here waits for a tick.
//!
//! | module | holds |
//! |---|---|
//! | this one | a tree's settings; from a request to an answer |
//! | `path` | what a request's path may name |
//! | `tree`, `cached` | opening what is inside the root, on a blocking thread, or at once if that cannot block |
//! | `conditions` | conditional requests, ranges, encodings |
//! | `send` | headers and content |
//! | `listing` | the page of a directory |

#[cfg(target_os = "linux")]
mod cached;
mod conditions;
mod listing;
mod path;
mod send;
mod tree;

pub(crate) use conditions::Asked;
pub use send::{Source, attachment, content_type};

use crate::body::Body;
use crate::endpoint::Endpoint;
use crate::runtime::IoThread;
use crate::server::http::{plain, with};
use conditions::accepted;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tree::{Kind, Tree};

/// How often a file is looked at anew that becomes shorter while its first bytes are read.
const ATTEMPTS: usize = 3;

/// How a tree of files is served.
#[derive(Clone, Debug)]
pub struct Options {
    /// The file that stands for its directory.
    pub home_page: Option<String>,
    /// Whether a directory without one is listed.
    pub listing: bool,
    /// The file, relative to the root, that is sent with 404.
    pub error_page: Option<String>,
    /// The header Cache-Control of every file.
    pub cache_control: Option<HeaderValue>,
    /// Whether `x.br`, `x.zst` and `x.gz` are sent for `x`.
    pub precompressed: bool,
    /// Whether names that begin with a dot are served.
    pub hidden: bool,
    /// Whether symbolic links may lead out of the root.
    pub follow_symlinks: bool,
}

/// A tree of files under a path prefix.
#[derive(Debug)]
pub struct Files {
    root: PathBuf,
    options: Options,
    error_page: Option<PathBuf>,
    #[cfg(target_os = "linux")]
    local: cached::Local,
}

impl Files {
    /// A tree. `root` is absolute.
    ///
    /// # Errors
    /// The option that names a file where it cannot be.
    pub fn new(root: PathBuf, options: Options) -> Result<Self, String> {
        if let Some(name) = &options.home_page
            && !path::is_plain(name.as_bytes(), true)
        {
            return Err(format!("home_page={name:?} is not a file's name"));
        }
        let error_page = match &options.error_page {
            None => None,
            Some(page) => Some(
                path::inside(page).ok_or_else(|| format!("error_page={page:?} is not a path inside the directory"))?,
            ),
        };
        Ok(Self {
            root,
            options,
            error_page,
            #[cfg(target_os = "linux")]
            local: cached::Local::default(),
        })
    }
}

/// One look into a tree.
struct Look {
    files: Arc<Files>,
    /// Segments of the prefix that it is mounted at.
    depth: usize,
    asked: Asked,
    uri: Uri,
    io: Arc<IoThread>,
}

/// Whether there is nothing to be served, rather than something that cannot be.
fn is_missing(error: &io::Error) -> bool {
    #[cfg(unix)]
    if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
        return true;
    }
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::InvalidInput
    )
}

impl Look {
    /// What the kernel has in memory; otherwise `WouldBlock`.
    #[cfg(target_os = "linux")]
    fn cached(&self) -> io::Result<Response<Body>> {
        if self.files.options.follow_symlinks {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.take(&Tree::Cached(cached::Cached::new(&self.files.root, &self.files.local)?))
    }

    /// Waits for the disk.
    fn waiting(&self) -> io::Result<Response<Body>> {
        #[cfg(target_os = "linux")]
        self.files.local.learn(&self.files.root);
        let mut last = io::ErrorKind::UnexpectedEof.into();
        for _ in 0..ATTEMPTS {
            match Tree::new(&self.files.root, self.files.options.follow_symlinks).and_then(|tree| self.take(&tree)) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => last = error,
                Err(error) if is_missing(&error) => return Ok(not_found()),
                done => return done,
            }
        }
        Err(last)
    }

    fn take(&self, tree: &Tree<'_>) -> io::Result<Response<Body>> {
        match self.found(tree) {
            Err(error) if is_missing(&error) => {}
            Ok(None) => {}
            Ok(Some(response)) => return Ok(response),
            Err(error) => return Err(error),
        }
        let Some(page) = &self.files.error_page else { return Ok(not_found()) };
        match self.file_if_any(tree, page, StatusCode::NOT_FOUND) {
            Err(error) if is_missing(&error) => Ok(not_found()),
            done => Ok(done?.unwrap_or_else(not_found)),
        }
    }

    /// A file, if there is one.
    fn file_if_any(&self, tree: &Tree<'_>, path: &Path, status: StatusCode) -> io::Result<Option<Response<Body>>> {
        if tree.kind(path)? == Kind::File { self.file(tree, path, status) } else { Ok(None) }
    }

    /// The answer, if there is something to be served.
    fn found(&self, tree: &Tree<'_>) -> io::Result<Option<Response<Body>>> {
        let options = &self.files.options;
        let url = self.uri.path();
        let Some(wanted) = path::wanted(url, self.depth, options.hidden) else { return Ok(None) };
        match tree.kind(&wanted.path)? {
            Kind::File if !wanted.slash => self.file(tree, &wanted.path, StatusCode::OK),
            Kind::Directory if !wanted.slash => {
                let query = self.uri.query().map(|q| format!("?{q}")).unwrap_or_default();
                let Ok(location) = HeaderValue::from_str(&format!("{url}/{query}")) else { return Ok(None) };
                let moved = plain(StatusCode::MOVED_PERMANENTLY, "301 Moved Permanently\n");
                Ok(Some(with(moved, header::LOCATION, location)))
            }
            Kind::Directory => {
                if let Some(name) = &options.home_page {
                    match self.file_if_any(tree, &wanted.path.join(name), StatusCode::OK) {
                        Err(error) if is_missing(&error) => {}
                        Ok(None) => {}
                        done => return done,
                    }
                }
                if !options.listing {
                    return Ok(None);
                }
                let top = wanted.path.as_os_str().is_empty();
                let page = listing::page(tree, &wanted.path, url, top, options.hidden)?;
                let page = with(plain(StatusCode::OK, page), header::CONTENT_TYPE, send::HTML);
                // It has no validator, so nobody may take it for what it was.
                Ok(Some(with(page, header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))))
            }
            Kind::File | Kind::Other => Ok(None),
        }
    }

    /// What was found to be a file, or the smaller copy of it that the client prefers; `None` when it is none any more.
    fn file(&self, tree: &Tree<'_>, path: &Path, status: StatusCode) -> io::Result<Option<Response<Body>>> {
        let Some(mut source) = Source::new(tree.file(path)?, path)? else { return Ok(None) };
        let mut headers = HeaderMap::new();
        if let (Some(value), StatusCode::OK) = (&self.files.options.cache_control, status) {
            headers.insert(header::CACHE_CONTROL, value.clone());
        }
        if self.files.options.precompressed && send::compresses(&source.content_type) {
            headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
            for (encoding, ending) in accepted(&self.asked.headers) {
                let mut copy = path.as_os_str().to_owned();
                copy.push(ending);
                let found = match open(tree, Path::new(&copy)) {
                    Err(error) if is_missing(&error) => None,
                    found => found?,
                };
                // One that is older than its original was made from another.
                let Some(mut found) = found.filter(|f| f.validators.modified >= source.validators.modified) else {
                    continue;
                };
                found.content_type = source.content_type;
                found.validators.tag = format!("{}-{encoding}", found.validators.tag);
                headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
                source = found;
                break;
            }
        }
        let read = |file: &_, buf: &mut [u8], at| tree.read(file, buf, at);
        send::respond(&source, read, &self.asked, status, headers, &self.io).map(Some)
    }
}

/// Opens a regular file of a tree.
fn open(tree: &Tree<'_>, path: &Path) -> io::Result<Option<Source>> {
    if tree.kind(path)? != Kind::File {
        return Ok(None);
    }
    Source::new(tree.file(path)?, path)
}

fn not_found() -> Response<Body> {
    plain(StatusCode::NOT_FOUND, "404 Not Found\n")
}

/// Does what may wait for a disk on a thread for that. The permit goes with it: whoever asked may be gone before.
async fn blocking<T: Send + 'static>(io: &Arc<IoThread>, work: impl FnOnce() -> T + Send + 'static) -> T {
    let permit = Arc::clone(&io.file_reads).acquire_owned().await;
    let done = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work()
    });
    match done.await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(value) => value,
        // Surfaces where the task of the connection is guarded.
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime ends, and with it whoever waits.
        Err(Err(_)) => std::future::pending().await,
    }
}

/// Answers a request for a tree that is mounted at a prefix of `depth` segments.
pub(crate) async fn answer(
    files: Arc<Files>,
    depth: usize,
    request: Request<Incoming>,
    endpoint: &Arc<Endpoint>,
    io: &Arc<IoThread>,
) -> Response<Body> {
    if *request.method() != Method::GET && *request.method() != Method::HEAD {
        let answer = if *request.method() == Method::OPTIONS {
            let mut answer = Response::new(Body::default());
            *answer.status_mut() = StatusCode::NO_CONTENT;
            answer
        } else {
            plain(StatusCode::METHOD_NOT_ALLOWED, "405 Method Not Allowed\n")
        };
        return with(answer, header::ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    }
    let (parts, _) = request.into_parts();
    let asked = Asked::with(&parts.method, parts.headers);
    let look = Look { files, depth, asked, uri: parts.uri, io: Arc::clone(io) };
    #[cfg(target_os = "linux")]
    // Whatever went wrong, a blocking thread looks again.
    if let Ok(response) = look.cached() {
        return response;
    }
    let path = look.uri.path().to_owned();
    let done = blocking(io, move || look.waiting());
    settled(done, || format!("file for {path}"), endpoint, io).await
}

/// Opens up the file of a program's answer, if it is one.
pub(crate) async fn opened(
    response: Response<Body>,
    asked: &Asked,
    endpoint: &Arc<Endpoint>,
    io: &Arc<IoThread>,
) -> Response<Body> {
    let Some(source) = response.body().as_file() else { return response };
    let (source, status, headers) = (source.clone(), response.status(), response.headers().clone());
    #[cfg(target_os = "linux")]
    if let Ok(response) = send::respond(&source, cached::read, asked, status, headers.clone(), io) {
        return response;
    }
    let (asked, thread) = (asked.clone(), Arc::clone(io));
    let done = blocking(io, move || send::respond(&source, tree::read_at, &asked, status, headers, &thread));
    settled(done, || "file of an answer".to_owned(), endpoint, io).await
}

/// The answer, or what stands in for it when the disk fails, or does not answer.
async fn settled(
    done: impl Future<Output = io::Result<Response<Body>>>,
    what: impl FnOnce() -> String,
    endpoint: &Arc<Endpoint>,
    io: &Arc<IoThread>,
) -> Response<Body> {
    let limit = endpoint.settings.handler_timeout;
    let (status, text) = match tokio::time::timeout(limit, done).await {
        Ok(Ok(response)) => return response,
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            endpoint.complain(io, "file", || format!("{} refused with 403: {error}", what()));
            (StatusCode::FORBIDDEN, "403 Forbidden\n")
        }
        Ok(Err(error)) => {
            endpoint.complain(io, "file", || format!("{} answered with 500: {error}", what()));
            (StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error\n")
        }
        Err(_) => {
            endpoint.complain(io, "file", || {
                let limit = limit.as_secs_f64();
                format!("{} answered with 503: not there within handler_timeout={limit} s", what())
            });
            (StatusCode::SERVICE_UNAVAILABLE, "503 Service Unavailable\n")
        }
    };
    plain(status, text)
}
