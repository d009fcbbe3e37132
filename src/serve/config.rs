//! What the server was told to do, resolved.

use std::path::PathBuf;
use std::time::Duration;

use super::host::{Host, Hosts};
use super::listen::Listener;
use crate::board;

/// The listen address when none is given: this box alone.
pub const LISTEN_DEFAULT: &str = "127.0.0.1:8080";

/// Most MiB of a saved prompt cache when the board does not say.
pub const CACHE_MIB_DEFAULT: u32 = 1024;

/// Settings of the server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where to listen, if no sockets are passed on.
    pub listen: String,
    /// File with the API keys.
    pub keys_file: Option<PathBuf>,
    /// The origin whose pages may talk to the server.
    pub cors_origin: Option<String>,
    /// Hosts that are answered without a key besides those that are safe.
    pub hosts: Vec<Host>,
    /// Prompts are written to the log.
    pub log_prompts: bool,
    /// Descriptor to report readiness on.
    pub ready_fd: Option<i32>,
    /// ClientLimits on what one client can take.
    pub limits: ClientLimits,
}

impl ServerConfig {
    /// The hosts that are answered at `listener`: all where a key is asked for.
    pub fn hosts_of(&self, listener: &Listener) -> Hosts {
        match self.keys_file {
            Some(_) => Hosts::Any,
            None => Hosts::of(listener, &self.listen, &self.hosts),
        }
    }
}

/// ClientLimits on what one client can take.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    /// Connections at once. Each costs about 10 KiB while it is idle.
    pub connections: usize,
    /// Bytes of a request's header.
    pub header_bytes: usize,
    /// Time for a header.
    pub header_time: Duration,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Time for a body.
    pub body_time: Duration,
    /// Time a connection may be idle.
    pub idle_time: Duration,
    /// Time a client may let its answer wait.
    pub write_time: Duration,
    /// Time until the first token.
    pub first_token_time: Duration,
    /// Requests that may wait for a slot.
    pub queue: usize,
    /// Time that requests have to end after SIGTERM.
    pub drain_time: Duration,
}

impl ClientLimits {
    /// The board's limits, else the defaults.
    pub fn new(board: &board::LimitsSection) -> ClientLimits {
        let seconds = |value: Option<u32>, default: u64| Duration::from_secs(value.map_or(default, u64::from));
        let size = |value: Option<u32>, default: usize| value.map_or(default, |n| n as usize);
        ClientLimits {
            connections: size(board.connections, 256),
            header_bytes: size(board.header_kib, 16) << 10,
            header_time: seconds(board.header_s, 10),
            // About a million tokens of text.
            body_bytes: size(board.body_kib, 4096) << 10,
            body_time: seconds(board.body_s, 30),
            idle_time: seconds(board.idle_s, 60),
            write_time: seconds(board.write_s, 30),
            first_token_time: seconds(board.first_token_s, 600),
            queue: size(board.queue, 16),
            drain_time: seconds(board.drain_s, 20),
        }
    }
}
