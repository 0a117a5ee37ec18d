//! The settings of a backplane, and its address.

use crate::tls::{self, TlsError, Trust};
use reqwest::Url;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::ClientConfig;

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `redis://` and `rediss://`.
    Redis,
    /// `nats://` and `tls://`.
    Nats,
}

/// What becomes of a publish when `backplane_buffer` bytes wait for the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The oldest that waits is thrown away.
    DropOldest,
    /// The new one is not published at all.
    Refuse,
}

/// Where an engine listens, and who we are to it.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// Which.
    pub kind: Kind,
    /// Host and port; several for NATS.
    pub hosts: Vec<(String, u16)>,
    /// Encrypted.
    pub tls: bool,
    /// The user, or a token of NATS if there is no password.
    pub user: Option<String>,
    /// The password.
    pub password: Option<String>,
    /// Of Redis.
    pub database: i64,
}

/// Why an address will not do. Says nothing of the address itself, which has secrets: [`shown`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressError(&'static str);

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// An address without what must not be seen: for errors and the log.
#[must_use]
pub fn shown(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    // A password may hold any of the characters that end an authority, if somebody forgot to encode it: the last @ counts.
    let hosts = rest.rsplit_once('@').map_or(rest, |(_, hosts)| hosts);
    let hosts = hosts.split('?').next().unwrap_or_default();
    if scheme.is_empty() { hosts.to_owned() } else { format!("{scheme}://{hosts}") }
}

/// What stands for bytes in a part of an address.
fn decoded(text: &str) -> Result<Option<String>, AddressError> {
    let text = percent_encoding::percent_decode_str(text).decode_utf8();
    let text = text.map_err(|_| AddressError("user and password are UTF-8"))?;
    Ok((!text.is_empty()).then(|| text.into_owned()))
}

impl Address {
    /// Reads an address.
    ///
    /// # Errors
    /// When it will not do.
    pub fn parse(url: &str) -> Result<Self, AddressError> {
        let (scheme, rest) = url.split_once("://").ok_or(AddressError("it has no scheme"))?;
        let (kind, tls, port) = match scheme.to_ascii_lowercase().as_str() {
            "redis" => (Kind::Redis, false, 6379),
            "rediss" => (Kind::Redis, true, 6379),
            "nats" => (Kind::Nats, false, 4222),
            "tls" => (Kind::Nats, true, 4222),
            _ => return Err(AddressError("its scheme is none of redis, rediss, nats, tls")),
        };
        let mut address = Self { kind, hosts: Vec::new(), tls, user: None, password: None, database: 0 };
        for part in rest.split(',') {
            let part = part.rsplit_once("://").map_or(part, |(_, rest)| rest);
            let url = Url::parse(&format!("{scheme}://{part}")).map_err(|_| AddressError("it is not a URL"))?;
            let host = url.host_str().filter(|host| !host.is_empty()).ok_or(AddressError("it has no host"))?;
            // Of an IPv6 address without the brackets, for resolving.
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            address.hosts.push((host, url.port().unwrap_or(port)));
            if address.user.is_none() && address.password.is_none() {
                address.user = decoded(url.username())?;
                address.password = decoded(url.password().unwrap_or_default())?;
            }
            if url.query().is_some() || url.fragment().is_some() {
                return Err(AddressError("it has no place for ? and #: settings are arguments"));
            }
            match url.path().trim_matches('/') {
                "" => {}
                number if kind == Kind::Redis => {
                    let bad = |_| AddressError("behind the slash stands the number of a database");
                    address.database = number.parse::<u32>().map_err(bad)?.into();
                }
                _ => return Err(AddressError("nothing stands behind the port")),
            }
        }
        if kind == Kind::Redis && address.hosts.len() > 1 {
            return Err(AddressError("Redis has one host: clusters and sentinels are not spoken"));
        }
        Ok(address)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not who we are to it.
        f.debug_struct("Address").field("kind", &self.kind).field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

/// The settings, by the names of the Python arguments without `backplane_`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where.
    pub address: Address,
    /// With what the names of channels, subjects, keys and streams of this system begin. Letters, digits, `-` and `_`.
    pub prefix: String,
    /// Bytes that may wait while the engine is away.
    pub buffer: usize,
    /// What becomes of more.
    pub overflow: Overflow,
    /// Messages that the engine keeps, of all topics with history together.
    pub history: usize,
    /// After so much silence a node is taken for gone, and a link for lost; an attempt to connect takes no longer.
    pub timeout: Duration,
    /// NATS: a file of a user's JWT and key.
    pub credentials: Option<PathBuf>,
    /// For an encrypted link; made by [`Config::trust`].
    pub tls: Option<Arc<ClientConfig>>,
}

impl Config {
    /// With the defaults.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self {
            address,
            prefix: "pyhv".to_owned(),
            buffer: 16 << 20,
            overflow: Overflow::DropOldest,
            history: 10_000,
            timeout: Duration::from_secs(10),
            credentials: None,
            tls: None,
        }
    }

    /// Whom an encrypted link trusts.
    ///
    /// # Errors
    /// When a file will not do.
    pub fn trust(&mut self, trust: &Trust) -> Result<(), TlsError> {
        if self.address.tls {
            let mut config = (*tls::client_config(trust)?).clone();
            // Neither engine negotiates a protocol.
            config.alpn_protocols.clear();
            self.tls = Some(Arc::new(config));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let address = Address::parse("redis://me:p%40ss@db.example/3").unwrap();
        assert_eq!((address.kind, address.tls, address.database), (Kind::Redis, false, 3));
        assert_eq!(address.hosts, [("db.example".to_owned(), 6379)]);
        assert_eq!((address.user.as_deref(), address.password.as_deref()), (Some("me"), Some("p@ss")));
        let address = Address::parse("rediss://:secret@[::1]:7000").unwrap();
        assert_eq!((address.tls, address.hosts), (true, vec![("::1".to_owned(), 7000)]));
        assert_eq!((address.user, address.password), (None, Some("secret".to_owned())));
        let address = Address::parse("nats://token@a,b:5000,nats://c").unwrap();
        let hosts = [("a", 4222), ("b", 5000), ("c", 4222)].map(|(host, port)| (host.to_owned(), port));
        assert_eq!(address.hosts, hosts);
        assert_eq!((address.user.as_deref(), address.password), (Some("token"), None));
        assert!(Address::parse("tls://a").unwrap().tls);
        for bad in [
            "",
            "redis",
            "redis://",
            "http://a",
            "redis://a/x",
            "redis://a,b",
            "nats://a/x",
            "redis://a?x=1",
            "redis://a:x",
        ] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(shown("redis://me:p/@a?ss@db:6379/0?password=x"), "redis://db:6379/0");
        assert_eq!(shown("me:pass@db"), "db");
        assert_eq!(shown("redis://db"), "redis://db");
        let address = Address::parse("redis://me:hunter2@db").unwrap();
        assert!(!format!("{:?}", Config::new(address)).contains("hunter2"));
    }
}
