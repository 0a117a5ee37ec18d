//! The page that lists a directory.

use super::path::is_plain;
use super::tree::Tree;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fmt::Write;
use std::io;
use std::path::Path;

/// Entries of one page: it is made in memory.
const MOST: usize = 10_000;

/// Bytes of a name that a link has as they are: RFC 3986's unreserved ones.
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

fn bytes(name: &OsStr) -> Vec<u8> {
    #[cfg(unix)]
    {
        std::os::unix::ffi::OsStrExt::as_bytes(name).to_vec()
    }
    #[cfg(not(unix))]
    {
        name.to_string_lossy().into_owned().into_bytes()
    }
}

/// Text as HTML has it, in content and in attributes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// The page. `url`: the raw path that was asked for; `top`: there is nothing above it to go to.
pub(super) fn page(tree: &Tree<'_>, path: &Path, url: &str, top: bool, hidden: bool) -> io::Result<String> {
    let (mut entries, more) = tree.entries(path, MOST, |name| is_plain(&bytes(name), hidden))?;
    entries.sort_by(|a, b| match b.directory.cmp(&a.directory) {
        Ordering::Equal => a.name.cmp(&b.name),
        order => order,
    });
    let title = escaped(&percent_decode_str(url).decode_utf8_lossy());
    let mut page = format!(
        "<!DOCTYPE html>\n<html>\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n</head>\n<body>\n<h1>{title}</h1>\n<ul>\n"
    );
    if !top {
        page.push_str("<li><a href=\"../\">../</a></li>\n");
    }
    for entry in entries {
        let slash = if entry.directory { "/" } else { "" };
        let name = bytes(&entry.name);
        let shown = escaped(&String::from_utf8_lossy(&name));
        // Writing to a String cannot fail.
        let _ = writeln!(page, "<li><a href=\"{}{slash}\">{shown}{slash}</a></li>", percent_encode(&name, NAME));
    }
    page.push_str(if more { "</ul>\n<p>and more</p>\n</body>\n</html>\n" } else { "</ul>\n</body>\n</html>\n" });
    Ok(page)
}
