//! A snapshot as text: for Prometheus (exposition format 0.0.4), and as JSON for the dashboard.

use super::{Histogram, Snapshot};
use std::fmt::Write;

/// What a metric's numbers do.
const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";

/// Text that grows. Writing to a string does not fail.
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, kind, help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn labelled<V: std::fmt::Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (impl AsRef<str>, V)>,
    ) {
        self.head(name, kind, help);
        for (of, value) in values {
            // Names of our own: nothing in them is to be escaped.
            let _ = writeln!(self.0, "{name}{{{label}=\"{}\"}} {value}", of.as_ref());
        }
    }

    fn histogram(&mut self, name: &str, help: &str, Histogram { buckets, count, sum }: &Histogram) {
        self.head(name, "histogram", help);
        for (bound, below) in buckets {
            let _ = writeln!(self.0, "{name}_bucket{{le=\"{}\"}} {below}", bound.as_secs_f64());
        }
        let _ = writeln!(self.0, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(self.0, "{name}_sum {}\n{name}_count {count}", sum.as_secs_f64());
    }
}

impl Snapshot {
    /// As a scraper of Prometheus takes it.
    #[must_use]
    pub fn prometheus(&self) -> String {
        let mut text = Text(String::with_capacity(8 << 10));
        let version = [(env!("CARGO_PKG_VERSION"), 1)];
        text.labelled("pyhv_build_info", GAUGE, "The version of pyHV.", "version", version);
        text.one("pyhv_start_time_seconds", GAUGE, "When the server started, in seconds since 1970.", self.started);
        text.one("pyhv_io_threads", GAUGE, "Native I/O threads of the process.", self.io_threads);

        let connections = [("http", self.http_connections), ("websocket", self.websockets)];
        text.labelled("pyhv_connections", GAUGE, "Open connections.", "protocol", connections);
        let help = "TCP connections that were accepted.";
        text.one("pyhv_connections_accepted_total", COUNTER, help, self.connections_accepted);
        text.one("pyhv_websockets_opened_total", COUNTER, "WebSockets that opened.", self.websockets_opened);
        let closed = self.websockets_closed.iter().map(|(code, n)| (code, n));
        text.labelled("pyhv_websockets_closed_total", COUNTER, "WebSockets that ended, by close code.", "code", closed);

        text.one("pyhv_http_requests_total", COUNTER, "HTTP requests whose head arrived.", self.http_requests);
        let help = "HTTP requests that are not answered yet.";
        text.one("pyhv_http_requests_active", GAUGE, help, self.http_requests_active);
        let help = "HTTP requests whose client left before the answer.";
        text.one("pyhv_http_requests_abandoned_total", COUNTER, help, self.http_requests_abandoned);
        let responses = self.http_responses.iter().copied();
        text.labelled(
            "pyhv_http_responses_total",
            COUNTER,
            "HTTP answers, by class of their status.",
            "class",
            responses,
        );

        text.one("pyhv_messages_received_total", COUNTER, "WebSocket messages received.", self.messages_received);
        text.one(
            "pyhv_messages_sent_total",
            COUNTER,
            "WebSocket messages sent, once for each peer.",
            self.messages_sent,
        );
        let help = "Content of the messages received, uncompressed.";
        text.one("pyhv_message_received_bytes_total", COUNTER, help, self.message_bytes_received);
        let help = "Content of the messages sent, uncompressed.";
        text.one("pyhv_message_sent_bytes_total", COUNTER, help, self.message_bytes_sent);
        let help = "Messages dropped by slow_policy.";
        text.one("pyhv_messages_dropped_total", COUNTER, help, self.messages_dropped);
        let help = "Messages that gave way to a newer one, by latest.";
        text.one("pyhv_messages_skipped_total", COUNTER, help, self.messages_skipped);
        let help = "Messages that gave way to a newer one with their key before they were sent.";
        text.one("pyhv_messages_replaced_total", COUNTER, help, self.messages_replaced);
        let read = [("http", self.http_bytes_read), ("websocket", self.websocket_bytes_read)];
        let help = "Bytes read from connections, without TLS.";
        text.labelled("pyhv_socket_read_bytes_total", COUNTER, help, "protocol", read);
        let written = [("http", self.http_bytes_written), ("websocket", self.websocket_bytes_written)];
        let help = "Bytes written to connections, without TLS.";
        text.labelled("pyhv_socket_written_bytes_total", COUNTER, help, "protocol", written);

        text.one("pyhv_pings_sent_total", COUNTER, "Keep-alive pings sent.", self.pings_sent);
        text.one("pyhv_pings_answered_total", COUNTER, "Keep-alive pings that were answered.", self.pings_answered);
        text.one("pyhv_pings_waiting", GAUGE, "Keep-alive pings without an answer so far.", self.pings_waiting);
        let help = "Keep-alive pings whose connection ended without an answer.";
        text.one("pyhv_pings_unanswered_total", COUNTER, help, self.pings_unanswered);
        let refusals = self.refusals.iter().copied();
        let help = "Limits that were reached and faults that were seen.";
        text.labelled("pyhv_refusals_total", COUNTER, help, "reason", refusals);

        text.one("pyhv_events_pending", GAUGE, "Events that wait for a tick.", self.events_pending);
        let help = "What they take of max_pending_bytes.";
        text.one("pyhv_events_pending_bytes", GAUGE, help, self.events_pending_bytes);
        let help = "WebSockets that are not read because the program does not keep up.";
        text.one("pyhv_websockets_paused", GAUGE, help, self.websockets_paused);
        let help = "WebSockets for which something waits to be sent.";
        text.one("pyhv_websockets_behind", GAUGE, help, self.websockets_behind);
        text.one("pyhv_buffered_bytes", GAUGE, "Bytes that wait to be sent to them.", self.buffered_bytes);
        let help = "What the program has sent and no I/O thread has looked at.";
        text.one("pyhv_commands_pending", GAUGE, help, self.commands_pending);
        let help = "Bytes of the small frames among it.";
        text.one("pyhv_commands_pending_bytes", GAUGE, help, self.commands_pending_bytes);

        text.one("pyhv_ticks_total", COUNTER, "Calls of tick().", self.ticks);
        text.one("pyhv_events_delivered_total", COUNTER, "Events that ticks delivered.", self.events_delivered);
        let help = "Time that ticks took which delivered something.";
        text.histogram("pyhv_tick_seconds", help, &self.tick_seconds);
        let help = "How long the tick that delivers now has been doing so; 0: none does.";
        text.one("pyhv_tick_running_seconds", GAUGE, help, self.tick_running.as_secs_f64());
        let help = "Time since the last tick began; 0 while the program waits in one.";
        text.one("pyhv_stall_age_seconds", GAUGE, help, self.stall_age.as_secs_f64());
        text.0
    }

    /// As the dashboard takes it; the names are those of `pyhv.ServerStats`.
    #[must_use]
    pub fn json(&self) -> String {
        let mut json = String::with_capacity(4 << 10);
        let mut field = |name: &str, value: &dyn std::fmt::Display| {
            let _ = write!(json, "{}\"{name}\":{value}", if json.is_empty() { '{' } else { ',' });
        };
        field("started", &self.started);
        field("uptime", &self.uptime.as_secs_f64());
        field("version", &concat!('"', env!("CARGO_PKG_VERSION"), '"'));
        field("tick_running", &self.tick_running.as_secs_f64());
        field("stall_age", &self.stall_age.as_secs_f64());
        for (name, value) in self.numbers() {
            field(name, &value);
        }
        field("websockets_closed", &object(self.websockets_closed.iter().map(|(code, n)| (code, *n))));
        field("http_responses", &object(self.http_responses.iter().copied()));
        field("refusals", &object(self.refusals.iter().copied()));
        let Histogram { buckets, count, sum } = &self.tick_seconds;
        let buckets: Vec<_> = buckets.iter().map(|(bound, n)| format!("[{},{n}]", bound.as_secs_f64())).collect();
        let sum = sum.as_secs_f64();
        let histogram = format!("{{\"buckets\":[{}],\"count\":{count},\"sum\":{sum}}}", buckets.join(","));
        field("tick_seconds", &histogram);
        json.push_str("}\n");
        json
    }

    /// Everything that is a whole number.
    #[must_use]
    pub fn numbers(&self) -> [(&'static str, u64); 32] {
        [
            ("io_threads", self.io_threads as u64),
            ("http_connections", self.http_connections),
            ("websockets", self.websockets),
            ("connections_accepted", self.connections_accepted),
            ("websockets_opened", self.websockets_opened),
            ("http_requests", self.http_requests),
            ("http_requests_active", self.http_requests_active),
            ("http_requests_abandoned", self.http_requests_abandoned),
            ("messages_received", self.messages_received),
            ("messages_sent", self.messages_sent),
            ("message_bytes_received", self.message_bytes_received),
            ("message_bytes_sent", self.message_bytes_sent),
            ("messages_dropped", self.messages_dropped),
            ("messages_skipped", self.messages_skipped),
            ("messages_replaced", self.messages_replaced),
            ("websocket_bytes_read", self.websocket_bytes_read),
            ("websocket_bytes_written", self.websocket_bytes_written),
            ("http_bytes_read", self.http_bytes_read),
            ("http_bytes_written", self.http_bytes_written),
            ("pings_sent", self.pings_sent),
            ("pings_answered", self.pings_answered),
            ("pings_waiting", self.pings_waiting),
            ("pings_unanswered", self.pings_unanswered),
            ("events_pending", self.events_pending as u64),
            ("events_pending_bytes", self.events_pending_bytes as u64),
            ("websockets_paused", self.websockets_paused),
            ("websockets_behind", self.websockets_behind as u64),
            ("buffered_bytes", self.buffered_bytes as u64),
            ("commands_pending", self.commands_pending as u64),
            ("commands_pending_bytes", self.commands_pending_bytes as u64),
            ("ticks", self.ticks),
            ("events_delivered", self.events_delivered),
        ]
    }
}

/// Numbers by names of our own, in which nothing is to be escaped.
fn object(values: impl Iterator<Item = (impl AsRef<str>, u64)>) -> String {
    let fields: Vec<_> = values.map(|(name, value)| format!("\"{}\":{value}", name.as_ref())).collect();
    format!("{{{}}}", fields.join(","))
}
