//! From a request's path to a path inside the root. What is refused here is refused on every platform, so that a tree
//! behaves the same wherever it is served; whether a symbolic link leaves the root is `tree`'s to see.

use percent_encoding::percent_decode_str;
use std::borrow::Cow;
use std::ffi::OsString;
use std::path::PathBuf;

/// A path relative to the root, without `.`, `..` and empty segments.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) path: PathBuf,
    /// It was asked for with a slash at the end: as a directory.
    pub(super) slash: bool,
}

/// Names that Windows takes for devices, with any extension (Microsoft, "Naming Files, Paths, and Namespaces").
const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "conin$", "conout$"];

fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or(name).trim_end().to_ascii_lowercase();
    if DEVICES.contains(&stem.as_str()) {
        return true;
    }
    // COM1 to COM9 and LPT1 to LPT9, also with superscript digits.
    let digit = stem.strip_prefix("com").or_else(|| stem.strip_prefix("lpt"));
    digit.is_some_and(|d| {
        matches!(d, "\u{b9}" | "\u{b2}" | "\u{b3}") || (d.len() == 1 && d.as_bytes()[0].is_ascii_digit())
    })
}

/// Whether a decoded segment names something in its directory and nothing else, on every platform.
pub(super) fn is_plain(name: &[u8], hidden: bool) -> bool {
    let (Some(first), Some(last)) = (name.first(), name.last()) else { return false };
    // A colon is a drive letter or an alternate stream; Windows drops a dot or space at the end.
    if name.iter().any(|b| matches!(b, b'/' | b'\\' | b':' | 0)) || matches!(last, b'.' | b' ') {
        return false;
    }
    if *first == b'.' && !hidden {
        return false;
    }
    // There a short name ("HTPASS~1") would reach a hidden file.
    if cfg!(windows) && name.contains(&b'~') {
        return false;
    }
    !std::str::from_utf8(name).is_ok_and(is_device)
}

/// Bytes as a file name: any on Unix, Unicode elsewhere.
fn os_name(name: Cow<'_, [u8]>) -> Option<OsString> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStringExt;
        Some(OsString::from_vec(name.into_owned()))
    }
    #[cfg(not(unix))]
    {
        String::from_utf8(name.into_owned()).ok().map(OsString::from)
    }
}

/// The path behind a prefix of so many segments: empty, or beginning with a slash.
fn behind(path: &str, depth: usize) -> &str {
    path.match_indices('/').nth(depth).map_or("", |(at, _)| &path[at..])
}

/// What a request's raw path asks of a root that is mounted at a prefix of `depth` segments; `None`: nothing that there
/// can be. Each segment is decoded once, after splitting: an encoded slash is part of a name, and no name has one.
pub(super) fn wanted(path: &str, depth: usize, hidden: bool) -> Option<Wanted> {
    let rest = behind(path, depth);
    let Some(rest) = rest.strip_prefix('/') else { return Some(Wanted { path: PathBuf::new(), slash: false }) };
    let mut segments: Vec<&str> = rest.split('/').collect();
    // What is behind the last slash is empty for a directory; any other empty segment is refused below.
    let slash = segments.pop_if(|last| last.is_empty()).is_some();
    let mut path = PathBuf::new();
    for segment in segments {
        let name: Cow<'_, [u8]> = percent_decode_str(segment).into();
        if !is_plain(&name, hidden) {
            return None;
        }
        path.push(os_name(name)?);
    }
    Some(Wanted { path, slash })
}

/// A path that the program names, relative to the root; `None` unless each of its segments is plain.
pub(super) fn inside(path: &str) -> Option<PathBuf> {
    path.split('/').map(|name| is_plain(name.as_bytes(), true).then_some(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(raw: &str, depth: usize) -> Option<(String, bool)> {
        wanted(raw, depth, false).map(|w| (w.path.to_str().unwrap().to_owned(), w.slash))
    }

    #[test]
    fn the_path_behind_the_prefix_is_decoded_once() {
        let found = |path: &str, slash| Some((path.to_owned(), slash));
        assert_eq!(path("/", 0), found("", true));
        assert_eq!(path("/a", 0), found("a", false));
        assert_eq!(path("/a/b/", 0), found("a/b", true));
        assert_eq!(path("/static", 1), found("", false));
        assert_eq!(path("/static/", 1), found("", true));
        assert_eq!(path("/static/a%20b/%c3%a9.txt", 1), found("a b/\u{e9}.txt", false));
        assert_eq!(path("/x/y/a%252eb", 2), found("a%2eb", false));
        assert_eq!(path("/100%", 0), found("100%", false));
    }

    #[test]
    fn nothing_leads_out_or_elsewhere() {
        for raw in [
            "//",
            "//a",
            "/a//b",
            "/a//",
            "/.",
            "/..",
            "/../a",
            "/a/..",
            "/a/../b",
            "/%2e%2e/a",
            "/%2E%2e",
            "/.%2e",
            "/..%2fa",
            "/a%2fb",
            "/%2fetc",
            "/%5c..%5ca",
            "/a\\b",
            "/..%5c",
            "/a%00b",
            "/a%00.txt",
            "/C:",
            "/c:/a",
            "/c%3a/a",
            "/a.txt:stream",
            "/a.txt::$DATA",
            "/.git/config",
            "/.htaccess",
            "/a/.b",
            "/%2ehidden",
            "/a.",
            "/a%20",
            "/a./b",
            "/nul",
            "/NUL.txt",
            "/con",
            "/Aux.h",
            "/com1",
            "/lpt9.log",
            "/COM%C2%B9",
            "/conin$",
            "/nul%20.txt",
            "/prn.tar.gz",
        ] {
            assert_eq!(path(raw, 0), None, "{raw}");
        }
        for raw in ["/common", "/console.js", "/a..b", "/nullable.txt", "/com10", "/lpt", "/~x", "/com"] {
            assert!(path(raw, 0).is_some(), "{raw}");
        }
    }

    #[test]
    fn hidden_names_on_demand() {
        assert!(wanted("/.well-known/x", 0, true).is_some());
        for raw in ["/..", "/.", "/%2e%2e", "/.../x", "/.a."] {
            assert!(wanted(raw, 0, true).is_none(), "{raw}");
        }
    }

    #[test]
    fn a_program_s_own_path() {
        assert_eq!(inside("a/.b/c.html"), Some(PathBuf::from("a/.b/c.html")));
        for path in ["", "/a", "a/", "../a", "a/../b", "a\\b", "c:a"] {
            assert_eq!(inside(path), None, "{path}");
        }
    }
}
