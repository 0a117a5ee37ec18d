//! From method and path to a route's target. Lookups run on the I/O threads, so that a path that nobody handles
//! is answered without the program.
//!
//! A pattern is a path whose segments are literal, `:name` (one segment), or, at the end, `*name` (the rest, at least
//! one character). Literal segments win over parameters. Paths are compared after percent-decoding each segment, but
//! a `%2F` stays inside its segment (RFC 3986 section 2.2: an encoded delimiter is data).

use http::Method;
use percent_encoding::percent_decode_str;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// The routes of a server. Cloned to be extended while it is in use.
#[derive(Clone, Debug)]
pub struct Router<T> {
    tree: matchit::Router<usize>,
    paths: Vec<PathEntry<T>>,
    /// What answers for everything below a path that no route is for: its decoded segments; the deepest first.
    mounts: Vec<(Vec<String>, T)>,
}

impl<T> Default for Router<T> {
    fn default() -> Self {
        Self { tree: matchit::Router::new(), paths: Vec::new(), mounts: Vec::new() }
    }
}

/// Names of a pattern's parameters, in order.
type Names = Arc<[Arc<str>]>;

#[derive(Clone, Debug)]
struct PathEntry<T> {
    /// The key under which `tree` knows it.
    key: String,
    methods: Vec<MethodEntry<T>>,
}

#[derive(Clone, Debug)]
struct MethodEntry<T> {
    /// `None`: any method.
    method: Option<Method>,
    target: T,
    /// Names of the parameters: two methods of one path may call them differently.
    names: Names,
}

/// Why a route was not added; the text is for the programmer.
#[derive(Debug, PartialEq, Eq)]
pub enum RouteError {
    /// The pattern itself.
    Pattern(String),
    /// It is there already.
    Duplicate(String),
    /// It cannot be told from another.
    Conflict(String),
    /// The method is not a token.
    Method(String),
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pattern(text) | Self::Duplicate(text) | Self::Conflict(text) | Self::Method(text) => {
                f.write_str(text)
            }
        }
    }
}

impl std::error::Error for RouteError {}

/// What a lookup found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<T> {
    /// A route.
    Route {
        /// What it was added with.
        target: T,
        /// The path parameters, decoded.
        params: Vec<(Arc<str>, String)>,
    },
    /// The path exists, the method does not; the value of `Allow`.
    MethodNotAllowed(String),
    /// No such path.
    NotFound,
}

/// A segment in the form that is compared: decoded, except that `/` and `%` stay (or become) encoded.
fn canonical(segment: &str) -> Option<Cow<'_, str>> {
    if !segment.contains('%') {
        return Some(Cow::Borrowed(segment));
    }
    let text = percent_decode_str(segment).decode_utf8().ok()?;
    Some(if text.contains(['/', '%']) {
        Cow::Owned(text.replace('%', "%25").replace('/', "%2F"))
    } else {
        Cow::Owned(text.into_owned())
    })
}

fn canonical_path(path: &str) -> Option<Cow<'_, str>> {
    if !path.contains('%') {
        return Some(Cow::Borrowed(path));
    }
    let segments: Option<Vec<_>> = path.split('/').map(canonical).collect();
    Some(Cow::Owned(segments?.join("/")))
}

fn decode_canonical(value: &str) -> String {
    if value.contains('%') { value.replace("%2F", "/").replace("%25", "%") } else { value.to_owned() }
}

/// The key for the tree, with positional names, and the names.
fn parse(pattern: &str) -> Result<(String, Names), RouteError> {
    let bad = |why: &str| RouteError::Pattern(format!("route pattern {pattern:?}: {why}"));
    let Some(rest) = pattern.strip_prefix('/') else {
        return Err(bad("a pattern begins with '/'"));
    };
    if rest.contains(['?', '#']) {
        return Err(bad("a pattern is a path, without '?' and '#'"));
    }
    let mut key = String::new();
    let mut names: Vec<Arc<str>> = Vec::new();
    let segments: Vec<_> = rest.split('/').collect();
    for (i, segment) in segments.iter().enumerate() {
        key.push('/');
        let (mark, name) = match segment.as_bytes().first() {
            Some(b':') => ("", &segment[1..]),
            Some(b'*') => ("*", &segment[1..]),
            _ => {
                let literal = canonical(segment).ok_or_else(|| bad("the percent-encoding is not UTF-8"))?;
                key.push_str(&literal.replace('{', "{{").replace('}', "}}"));
                continue;
            }
        };
        if name.is_empty() || !name.chars().all(|c| c.is_alphanumeric() || c == '_') {
            return Err(bad("a parameter's name consists of letters, digits and '_'"));
        }
        if mark == "*" && i + 1 != segments.len() {
            return Err(bad("'*name' takes the rest of the path, so it stands at the end"));
        }
        if names.iter().any(|other| **other == *name) {
            return Err(bad(&format!("two parameters are called {name:?}")));
        }
        key.push_str(&format!("{{{mark}p{}}}", names.len()));
        names.push(name.into());
    }
    Ok((key, names.into()))
}

impl<T: Clone> Router<T> {
    /// Adds a route. `method`: `None` is any.
    ///
    /// # Errors
    /// A malformed pattern, the same method and path again, or a path that cannot be told from another.
    pub fn add(&mut self, method: Option<&str>, pattern: &str, target: T) -> Result<(), RouteError> {
        let method = match method {
            None => None,
            Some(name) => Some(
                Method::from_bytes(name.as_bytes())
                    .map_err(|_| RouteError::Method(format!("{name:?} is not an HTTP method")))?,
            ),
        };
        let (key, names) = parse(pattern)?;
        let index = match self.paths.iter().position(|path| path.key == key) {
            Some(index) => index,
            None => {
                self.tree.insert(&key, self.paths.len()).map_err(|e| {
                    RouteError::Conflict(format!("route pattern {pattern:?} cannot be told from another: {e}"))
                })?;
                self.paths.push(PathEntry { key, methods: Vec::new() });
                self.paths.len() - 1
            }
        };
        let methods = &mut self.paths[index].methods;
        if methods.iter().any(|entry| entry.method == method) {
            let name = method.as_ref().map_or("any method", Method::as_str);
            return Err(RouteError::Duplicate(format!("{name} {pattern} has a handler already")));
        }
        methods.push(MethodEntry { method, target, names });
        Ok(())
    }

    /// Adds what answers for a path and everything below it, where no route does.
    /// `target`: is told how many segments the prefix has.
    ///
    /// # Errors
    /// A prefix that is no literal path, or one that is there already.
    pub fn mount(&mut self, prefix: &str, target: impl FnOnce(usize) -> T) -> Result<(), RouteError> {
        let bad = |why: &str| RouteError::Pattern(format!("prefix {prefix:?}: {why}"));
        let Some(rest) = prefix.strip_prefix('/') else { return Err(bad("a prefix begins with '/'")) };
        if rest.contains(['?', '#']) {
            return Err(bad("a prefix is a path, without '?' and '#'"));
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let mut segments = Vec::new();
        for segment in rest.split('/').filter(|_| !rest.is_empty()) {
            if segment.is_empty() {
                return Err(bad("a segment is empty"));
            }
            if segment.starts_with([':', '*']) {
                return Err(bad("a prefix has no parameters"));
            }
            segments.push(canonical(segment).ok_or_else(|| bad("the percent-encoding is not UTF-8"))?.into_owned());
        }
        if self.mounts.iter().any(|(other, _)| *other == segments) {
            return Err(RouteError::Duplicate(format!("there are files at {prefix:?} already")));
        }
        let depth = segments.len();
        let at = self.mounts.partition_point(|(other, _)| other.len() >= depth);
        self.mounts.insert(at, (segments, target(depth)));
        Ok(())
    }

    /// The mount that a raw path is below.
    fn mounted(&self, path: &str) -> Option<Found<T>> {
        if self.mounts.is_empty() {
            return None;
        }
        let path = path.strip_prefix('/')?;
        let below = |prefix: &[String]| {
            let mut segments = path.split('/');
            prefix.iter().all(|wanted| segments.next().and_then(canonical).is_some_and(|s| s == *wanted))
        };
        let (_, target) = self.mounts.iter().find(|(prefix, _)| below(prefix))?;
        Some(Found::Route { target: target.clone(), params: Vec::new() })
    }

    /// Looks up a request. `path`: the raw path, still encoded. A mount answers where no route has the path, and to GET
    /// and HEAD where none has the method.
    #[must_use]
    pub fn find(&self, method: &Method, path: &str) -> Found<T> {
        match self.routed(method, path) {
            Found::NotFound => self.mounted(path).unwrap_or(Found::NotFound),
            Found::MethodNotAllowed(allow) if *method == Method::GET || *method == Method::HEAD => {
                self.mounted(path).unwrap_or(Found::MethodNotAllowed(allow))
            }
            found => found,
        }
    }

    fn routed(&self, method: &Method, path: &str) -> Found<T> {
        let Some(path) = canonical_path(path) else { return Found::NotFound };
        let Ok(found) = self.tree.at(&path) else { return Found::NotFound };
        let methods = &self.paths[*found.value].methods;
        let by = |wanted: Option<&Method>| methods.iter().find(|entry| entry.method.as_ref() == wanted);
        // RFC 9110 section 9.3.2: HEAD is GET without the content.
        let head = (*method == Method::HEAD).then(|| by(Some(&Method::GET))).flatten();
        let Some(entry) = by(Some(method)).or(head).or_else(|| by(None)) else {
            return Found::MethodNotAllowed(allow(methods));
        };
        let values = found.params.iter().map(|(_, value)| decode_canonical(value));
        Found::Route { target: entry.target.clone(), params: entry.names.iter().cloned().zip(values).collect() }
    }
}

fn allow<T>(methods: &[MethodEntry<T>]) -> String {
    let mut names: Vec<&str> = methods.iter().filter_map(|m| m.method.as_ref()).map(Method::as_str).collect();
    if names.contains(&"GET") && !names.contains(&"HEAD") {
        names.push("HEAD");
    }
    if !names.contains(&"OPTIONS") {
        names.push("OPTIONS");
    }
    names.sort_unstable();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(routes: &[(&str, &str)]) -> Router<usize> {
        let mut router = Router::default();
        for (i, (method, pattern)) in routes.iter().enumerate() {
            router.add((*method != "*").then_some(*method), pattern, i).unwrap();
        }
        router
    }

    fn find(router: &Router<usize>, method: &str, path: &str) -> Option<(usize, Vec<String>)> {
        match router.find(&Method::from_bytes(method.as_bytes()).unwrap(), path) {
            Found::Route { target, params } => Some((target, params.into_iter().map(|(_, v)| v).collect())),
            _ => None,
        }
    }

    #[test]
    fn literal_beats_parameter_beats_nothing() {
        let r = router(&[("GET", "/users/me"), ("GET", "/users/:id"), ("GET", "/files/*rest"), ("GET", "/")]);
        assert_eq!(find(&r, "GET", "/users/me"), Some((0, vec![])));
        assert_eq!(find(&r, "GET", "/users/7"), Some((1, vec!["7".into()])));
        assert_eq!(find(&r, "GET", "/files/a/b"), Some((2, vec!["a/b".into()])));
        assert_eq!(find(&r, "GET", "/"), Some((3, vec![])));
        for path in ["/users", "/users/", "/users/7/", "/files", "/files/", "//", "/nope"] {
            assert_eq!(find(&r, "GET", path), None, "{path}");
        }
    }

    #[test]
    fn encoded_slash_stays_in_its_parameter() {
        let r = router(&[("GET", "/a/:x/b"), ("GET", "/caf\u{e9}"), ("GET", "/{odd}")]);
        assert_eq!(find(&r, "GET", "/a/1%2F2/b"), Some((0, vec!["1/2".into()])));
        assert_eq!(find(&r, "GET", "/a/100%25/b"), Some((0, vec!["100%".into()])));
        assert_eq!(find(&r, "GET", "/a/%252F/b"), Some((0, vec!["%2F".into()])));
        assert_eq!(find(&r, "GET", "/caf%C3%A9"), Some((1, vec![])));
        assert_eq!(find(&r, "GET", "/%7Bodd%7D"), Some((2, vec![])));
        assert_eq!(find(&r, "GET", "/a/%FF/b"), None);
    }

    #[test]
    fn methods_of_one_path() {
        let r = router(&[("GET", "/x/:a"), ("POST", "/x/:b"), ("*", "/any")]);
        assert_eq!(find(&r, "HEAD", "/x/1"), Some((0, vec!["1".into()])));
        assert_eq!(r.find(&Method::POST, "/x/1"), Found::Route { target: 1, params: vec![("b".into(), "1".into())] });
        assert_eq!(r.find(&Method::PUT, "/x/1"), Found::MethodNotAllowed("GET, HEAD, OPTIONS, POST".into()));
        assert_eq!(find(&r, "PROPFIND", "/any"), Some((2, vec![])));
        assert_eq!(r.find(&Method::GET, "/y"), Found::NotFound);
    }

    #[test]
    fn mounts_answer_where_no_route_does() {
        let mut r = router(&[("GET", "/static/made"), ("POST", "/"), ("GET", "/users/:id")]);
        assert_eq!(find(&r, "GET", "/other"), None);
        r.mount("/", |depth| 100 + depth).unwrap();
        r.mount("/static/deep/", |depth| 200 + depth).unwrap();
        r.mount("/st%61tic", |depth| 300 + depth).unwrap();
        for (method, path, expected) in [
            ("GET", "/", Some(100)),
            ("POST", "/", Some(1)),
            ("PUT", "/", None),
            ("GET", "/users/7", Some(2)),
            ("GET", "/users/7/", Some(100)),
            ("POST", "/users/7", None),
            ("GET", "/static", Some(301)),
            ("GET", "/static/", Some(301)),
            ("GET", "/st%61tic/x", Some(301)),
            ("GET", "/static/made", Some(0)),
            ("GET", "/statics", Some(100)),
            ("GET", "/static%2Fdeep/x", Some(100)),
            ("GET", "/static/deep/x/%ff", Some(202)),
            ("GET", "/static/deeper", Some(301)),
            ("GET", "/%ff", Some(100)),
            ("PUT", "/elsewhere", Some(100)),
        ] {
            assert_eq!(find(&r, method, path).map(|(target, _)| target), expected, "{method} {path}");
        }
        for (prefix, part) in [
            ("static", "begins with '/'"),
            ("/static/", "already"),
            ("/static", "already"),
            ("/a//b", "segment is empty"),
            ("/a/:b", "no parameters"),
            ("/a?b", "without '?'"),
            ("/%ff", "not UTF-8"),
        ] {
            let error = r.mount(prefix, |depth| depth).unwrap_err().to_string();
            assert!(error.contains(part), "{prefix}: {error}");
        }
    }

    #[test]
    fn bad_routes_are_named() {
        let mut r = router(&[("GET", "/a/:x")]);
        for (method, pattern, part) in [
            ("GET", "a", "begins with '/'"),
            ("GET", "/a?b", "without '?'"),
            ("GET", "/:", "name consists of"),
            ("GET", "/:a-b", "name consists of"),
            ("GET", "/*rest/more", "stands at the end"),
            ("GET", "/:a/:a", "two parameters"),
            ("GET", "/a/:y", "has a handler already"),
            ("GET", "/a/*y", "cannot be told"),
            ("G T", "/z", "not an HTTP method"),
        ] {
            let error = r.add(Some(method), pattern, 9).unwrap_err().to_string();
            assert!(error.contains(part), "{pattern}: {error}");
        }
    }
}
