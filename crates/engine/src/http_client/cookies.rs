//! The cookies of a client and of one request, by the `cookie_store` crate, within limits.
//!
//! reqwest asks for them through a trait that knows the URL alone; which request it is about says a task-local value.

use super::CALL;
use cookie_store::CookieStore;
use http::HeaderValue;
use parking_lot::Mutex;
use reqwest::Url;
use std::fmt;

/// Most cookies that are kept, of all hosts and of one domain (RFC 6265 section 6.1: at least 3000 and 50).
const MOST: usize = 3000;
const MOST_PER_DOMAIN: usize = 50;
/// Largest cookie with its attributes (the same section: at least 4096).
const LARGEST: usize = 4096;

/// Cookies within the limits; those beyond are not taken.
#[derive(Default)]
pub(crate) struct Jar {
    /// Guards the store for one look or change.
    store: Mutex<CookieStore>,
}

impl fmt::Debug for Jar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jar").finish_non_exhaustive()
    }
}

impl Jar {
    /// Takes the value of a Set-Cookie header. One that is malformed, or not for this host to set, is left out, as RFC
    /// 6265 section 5.2 has it.
    pub(crate) fn take(&self, cookie: &str, url: &Url) {
        if cookie.len() > LARGEST {
            return;
        }
        let mut store = self.store.lock();
        let domain = url.host_str().unwrap_or_default();
        let name = cookie.split('=').next().unwrap_or_default().trim();
        let (mut all, mut same, mut known) = (0, 0, false);
        for kept in store.iter_any() {
            all += 1;
            // A parent domain's count too: a host can set those.
            if kept.domain.as_cow().is_some_and(|d| domain.ends_with(&*d)) {
                same += 1;
                known |= kept.name() == name;
            }
        }
        // One that is there already can be set anew, or deleted.
        if !known && (all >= MOST || same >= MOST_PER_DOMAIN) {
            let expired: Vec<_> = store
                .iter_any()
                .filter(|c| c.is_expired())
                .filter_map(|c| Some((c.domain.as_cow()?.into_owned(), String::from(&c.path), c.name().to_owned())))
                .collect();
            for (domain, path, name) in &expired {
                store.remove(domain, path, name);
            }
            if expired.is_empty() {
                return;
            }
        }
        let _ = store.parse(cookie, url);
    }

    fn values(&self, url: &Url) -> Vec<(String, String)> {
        let store = self.store.lock();
        store.get_request_values(url).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

/// What reqwest asks: the cookies of the request that is being made, then those of its client.
#[derive(Debug)]
pub(crate) struct Cookies {
    /// The client's; `None`: it keeps none.
    pub(crate) jar: Option<Jar>,
}

impl reqwest::cookie::CookieStore for Cookies {
    fn set_cookies(&self, headers: &mut dyn Iterator<Item = &HeaderValue>, url: &Url) {
        for header in headers {
            let Ok(cookie) = std::str::from_utf8(header.as_bytes()) else { continue };
            if let Some(jar) = &self.jar {
                jar.take(cookie, url);
            }
            // For the redirects of this request.
            let _ = CALL.try_with(|call| call.jar.take(cookie, url));
        }
    }

    fn cookies(&self, url: &Url) -> Option<HeaderValue> {
        let mut values = CALL.try_with(|call| call.jar.values(url)).unwrap_or_default();
        for (name, value) in self.jar.iter().flat_map(|jar| jar.values(url)) {
            if !values.iter().any(|(known, _)| *known == name) {
                values.push((name, value));
            }
        }
        let pairs: Vec<_> = values.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if pairs.is_empty() { None } else { HeaderValue::from_bytes(pairs.join("; ").as_bytes()).ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn a_server_cannot_fill_the_jar() {
        let jar = Jar::default();
        for n in 0..2 * MOST_PER_DOMAIN {
            jar.take(&format!("n{n}=1"), &url("http://a.test/"));
        }
        assert_eq!(jar.values(&url("http://a.test/")).len(), MOST_PER_DOMAIN);
        for n in 0..MOST + 10 {
            jar.take("n=1", &url(&format!("http://h{n}.test/")));
        }
        assert_eq!(jar.store.lock().iter_any().count(), MOST);
        let jar = Jar::default();
        jar.take(&format!("n={}", "x".repeat(LARGEST)), &url("http://a.test/"));
        assert!(jar.values(&url("http://a.test/")).is_empty());
    }

    #[test]
    fn a_cookie_goes_to_its_own_host() {
        let jar = Jar::default();
        jar.take("a=1", &url("http://a.test/x"));
        jar.take("b=2; Domain=b.test", &url("http://a.test/x"));
        jar.take("c=3; Secure", &url("https://a.test/x"));
        assert_eq!(jar.values(&url("http://a.test/y")), [("a".to_owned(), "1".to_owned())]);
        assert!(jar.values(&url("http://b.test/")).is_empty());
        assert!(jar.values(&url("http://x.a.test/")).is_empty());
        assert_eq!(jar.values(&url("https://a.test/")).len(), 2);
    }
}
