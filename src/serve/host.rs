//! The Host of a request: exactly one, well formed (RFC 9112, section 3.2), and one that this server goes by.
//!
//! Where no key is asked for, whoever reaches the server may use it. A web page reaches it too, even one that listens on
//! this box alone: the page's own name is made to resolve to this address (DNS rebinding), and the browser then takes the
//! server for a part of the page. The Host of such a request is that name. So names have to be known here; an IP address
//! cannot be made to resolve to another.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, StatusCode, Version};

use super::error::ApiError;
use super::listen::{self, Listener};
use crate::error::{Error, Exit, Result};
use crate::sys::socket;

/// What a Host says, without its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address, an IPv6 one without its zone.
    Ip(IpAddr),
    /// A name in lower case, without the dot of the root.
    Name(String),
}

impl Host {
    /// Reads `uri-host [ ":" port ]` of RFC 9110; `None` for what is not one.
    pub fn parse(text: &[u8]) -> Option<Host> {
        let text = std::str::from_utf8(text).ok()?;
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once(']').map(|(inside, port)| (ipv6(inside), port))?,
            None => {
                let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
                (ipv4_or_name(name), port)
            }
        };
        let is_port = match port.strip_prefix(':') {
            None => port.is_empty(),
            Some("") => true,
            Some(digits) => digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u16>().is_ok(),
        };
        host.filter(|_| is_port)
    }
}

/// Whether the page of an origin is one of this machine's, at whatever port.
pub fn is_local_origin(origin: &[u8]) -> bool {
    let rest = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
    match rest.and_then(Host::parse) {
        Some(Host::Name(name)) => name == "localhost",
        Some(Host::Ip(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// What stands between brackets. A zone says which interface of the client's: nothing to the server.
fn ipv6(inside: &str) -> Option<Host> {
    let (address, zone) = inside.split_once('%').map_or((inside, None), |(address, zone)| (address, Some(zone)));
    let is_zone = |zone: &str| !zone.is_empty() && zone.bytes().all(|byte| is_unreserved(byte) || byte == b'%');
    let address: Ipv6Addr = address.parse().ok()?;
    zone.is_none_or(is_zone).then(|| Host::Ip(IpAddr::V6(address).to_canonical()))
}

fn ipv4_or_name(text: &str) -> Option<Host> {
    let text = text.strip_suffix('.').unwrap_or(text);
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Some(Host::Ip(address.into()));
    }
    let mut bytes = text.bytes();
    let mut is_name = !text.is_empty();
    while let Some(byte) = bytes.next() {
        is_name &= match byte {
            b'%' => (0..2).all(|_| bytes.next().is_some_and(|digit| digit.is_ascii_hexdigit())),
            _ => is_unreserved(byte) || b"!$&'()*+,;=".contains(&byte),
        };
    }
    is_name.then(|| Host::Name(text.to_ascii_lowercase()))
}

/// `unreserved` of RFC 3986.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// The hosts of `serve.hosts`; `*` stands for all.
///
/// # Errors
/// Exit 3 for what is not a name or an address.
pub fn listed(entries: &[String]) -> Result<Vec<Host>> {
    let read = |entry: &String| {
        let name = || if entry.contains(':') { None } else { Host::parse(entry.as_bytes()) };
        entry.parse().map(Host::Ip).ok().or_else(name).ok_or_else(|| {
            let text = format!(
                "serve.hosts has {entry:?}: needs names or addresses as they stand in a URL, without scheme, port and path"
            );
            Error::new(Exit::Board, text)
        })
    };
    entries.iter().map(read).collect()
}

/// The hosts that are answered at one listening socket.
#[derive(Clone, Debug)]
pub enum Hosts {
    /// All: a key is asked for, or no browser reaches it.
    Any,
    /// Those that no page can have been given, and those that the owner names.
    Known {
        /// Further names and addresses.
        names: Vec<Host>,
        /// All addresses, not those of loopback alone.
        any_ip: bool,
    },
}

impl Hosts {
    /// The hosts of `listener`, at which no key is asked for: `localhost`, loopback, the address itself, what it was told to
    /// `listen` at and what is `named` in `serve.hosts`; where other machines may reach it, all addresses and this machine's
    /// own name.
    pub fn of(listener: &Listener, listen: &str, named: &[Host]) -> Hosts {
        let Some(address) = listener.ip() else { return Hosts::Any };
        if named.contains(&Host::Name("*".to_owned())) {
            return Hosts::Any;
        }
        let mut names = vec![Host::Name("localhost".to_owned()), Host::Ip(address)];
        names.extend(listen::split(listen).filter_map(|listen| Host::parse(listen.as_bytes())));
        names.extend_from_slice(named);
        let any_ip = listener.is_public();
        if any_ip {
            let name = socket::host_name();
            let first = name.split('.').next().unwrap_or_default();
            names.extend(Host::parse(name.as_bytes()));
            names.extend(Host::parse(first.as_bytes()));
            names.extend(Host::parse(format!("{first}.local").as_bytes()));
        }
        Hosts::Known { names, any_ip }
    }

    /// Whether a request to `host` is answered.
    fn admits(&self, host: &Host) -> bool {
        match (self, host) {
            (Hosts::Any, _) => true,
            (Hosts::Known { any_ip, .. }, Host::Ip(address)) if *any_ip || address.is_loopback() => true,
            (Hosts::Known { names, .. }, host) => names.contains(host),
        }
    }
}

/// The host that a request is for, as it was written: of an absolute target, else the header's. HTTP/1.0 may go without.
///
/// # Errors
/// 400 where there is not exactly one, or a malformed one; 403 where `hosts` do not admit it.
pub fn of_request<'a, B>(request: &'a Request<B>, hosts: &Hosts) -> std::result::Result<&'a [u8], ApiError> {
    let header = only(request.headers(), request.version())?;
    let target = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    let Some(asked) = target.or(header) else { return Ok(&[]) };
    match (Host::parse(asked), header.map(Host::parse)) {
        (None, _) | (_, Some(None)) => Err(malformed("not the name or address of a host, with a port or without")),
        (Some(host), _) if hosts.admits(&host) => Ok(asked),
        _ => {
            let asked: String = String::from_utf8_lossy(asked).chars().take(80).collect();
            let text = format!(
                "this server is not known as {asked}; ask for it by address or as localhost, or have its owner name the \
                 host in serve.hosts of the board, or ask for keys (serve.keys_file)"
            );
            Err(ApiError::new(StatusCode::FORBIDDEN, text).code("host_not_allowed"))
        }
    }
}

/// The header, if there is exactly one, or none where there need not be one.
fn only(headers: &HeaderMap, version: Version) -> std::result::Result<Option<&[u8]>, ApiError> {
    let mut all = headers.get_all(header::HOST).iter().map(HeaderValue::as_bytes);
    match (all.next(), all.next()) {
        (Some(_), Some(_)) => Err(malformed("there more than once")),
        (None, _) if version > Version::HTTP_10 => Err(malformed("missing, and HTTP/1.1 needs it")),
        (first, _) => Ok(first),
    }
}

fn malformed(what: &str) -> ApiError {
    ApiError::bad(format!("the Host header is {what}")).code("bad_host")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_as_the_grammar_has_them() {
        let name = |text: &str| Some(Host::Name(text.to_owned()));
        let ip = |text: &str| Some(Host::Ip(text.parse().unwrap()));
        for (text, want) in [
            ("localhost", name("localhost")),
            ("LocalHost.:8080", name("localhost")),
            ("a-b_c.example:", name("a-b_c.example")),
            ("%41.example", name("%41.example")),
            ("127.0.0.1:65535", ip("127.0.0.1")),
            ("127.0.0.1.", ip("127.0.0.1")),
            ("127.1", name("127.1")),
            ("[::1]:80", ip("::1")),
            ("[::ffff:127.0.0.1]", ip("127.0.0.1")),
            ("[fe80::1%25eth0]:80", ip("fe80::1")),
            ("[fe80::1%eth0]", ip("fe80::1")),
            ("", None),
            (".", None),
            (":80", None),
            ("::1", None),
            ("[::1", None),
            ("[::1]x", None),
            ("[::1]80", None),
            ("[fe80::1%]", None),
            ("[fe80::1%a/b]", None),
            ("[localhost]", None),
            ("localhost:65536", None),
            ("localhost:+80", None),
            ("localhost:80a", None),
            ("localhost:80:80", None),
            ("user@localhost", None),
            ("localhost/", None),
            ("local host", None),
            ("localhost,evil.example", name("localhost,evil.example")),
            ("%4", None),
            ("http://localhost", None),
        ] {
            assert_eq!(Host::parse(text.as_bytes()), want, "{text:?}");
        }
        assert_eq!(Host::parse(b"caf\xe9"), None);
        assert_eq!(Host::parse("café".as_bytes()), None);
    }

    #[test]
    fn names_have_to_be_known_and_addresses_only_on_loopback() {
        let loopback = Hosts::Known { names: listed(&["LLM.example.".to_owned()]).unwrap(), any_ip: false };
        let network = Hosts::Known { names: vec![], any_ip: true };
        for (text, on_loopback, on_network) in [
            ("127.0.0.1:1", true, true),
            ("127.9.9.9", true, true),
            ("[::1]", true, true),
            ("[::ffff:127.0.0.1]", true, true),
            ("192.0.2.7", false, true),
            ("[fe80::1%25eth0]", false, true),
            ("llm.example:443", true, false),
            ("evil.example", false, false),
            ("localhost.evil.example", false, false),
            ("127.0.0.1.evil.example", false, false),
        ] {
            let host = Host::parse(text.as_bytes()).unwrap();
            assert_eq!((loopback.admits(&host), network.admits(&host)), (on_loopback, on_network), "{text}");
        }
    }

    #[test]
    fn the_board_names_hosts_without_ports() {
        let entries = |text: &str| listed(&[text.to_owned()]);
        assert_eq!(entries("fd00::1").unwrap(), [Host::Ip("fd00::1".parse().unwrap())]);
        for bad in ["", "http://a", "a:80", "a/b", "[::1]:80"] {
            let error = entries(bad).unwrap_err();
            assert!(error.exit() == Exit::Board && error.to_string().contains("serve.hosts"), "{bad}: {error}");
        }
    }
}
