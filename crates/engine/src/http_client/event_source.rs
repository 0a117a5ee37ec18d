//! A stream of server-sent events that connects again (HTML Living Standard, section 9.2.3).
//!
//! | what happens | then |
//! |---|---|
//! | 200 and text/event-stream | `Open`, then its events |
//! | any other response, 204 among them | `Failed`, for good |
//! | too many redirects, an event beyond the limit | `Failed`, for good |
//! | the stream ends | `Reconnecting`; the reconnection time later again |
//! | the network fails | `Reconnecting`; the same, doubled with each failure in a row, with jitter |

use super::error::{ErrorKind, HttpError};
use super::request::Reconnect;
use super::sse::Parser;
use super::{Job, What, is_event_stream};
use http::{HeaderName, HeaderValue, header};
use reqwest::Response;
use std::sync::Arc;
use std::time::Duration;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// What is kept of the body of a response that is no event stream: it may say why.
const SAID: usize = 64 << 10;
/// How long such a body may take.
const SAYING: Duration = Duration::from_secs(5);

/// How a connection ended.
enum End {
    /// The server ended the stream.
    Stream,
    /// The network failed before a response came.
    Unreached(HttpError),
    /// The network failed within the stream.
    Broken(HttpError),
    /// For good.
    Fatal(HttpError),
}

/// Runs until it fails for good; the error is why.
pub(super) async fn run(job: &Job, request: reqwest::Request, mut reconnect: Reconnect) -> HttpError {
    let mut failures = 0;
    loop {
        let Some(mut again) = request.try_clone() else {
            return HttpError::new(ErrorKind::Lost, &job.url, |url| {
                format!("the body for {url} can be sent once only")
            });
        };
        let id = &reconnect.last_event_id;
        if !id.is_empty() {
            // One with control characters cannot be sent: the server chose it, and gets none back.
            if let Ok(value) = HeaderValue::from_bytes(id.as_bytes()) {
                again.headers_mut().insert(LAST_EVENT_ID, value);
            }
        }
        let error = match connection(job, again, &mut reconnect, &mut failures).await {
            End::Fatal(error) => return error,
            End::Stream => {
                failures = 0;
                HttpError::new(ErrorKind::Lost, &job.url, |url| format!("{url} ended its stream of events"))
            }
            End::Broken(error) | End::Unreached(error) => {
                failures += 1;
                error
            }
        };
        job.deliver(What::Reconnecting(Box::new(error)));
        tokio::time::sleep(pause(&reconnect, failures, rand::random())).await;
    }
}

async fn connection(job: &Job, request: reqwest::Request, reconnect: &mut Reconnect, failures: &mut u32) -> End {
    let mut response = match job.send(request).await {
        Ok(response) => response,
        Err(error) if matches!(error.kind, ErrorKind::TooManyRedirects) => return End::Fatal(error),
        Err(error) => return End::Unreached(error),
    };
    if !is_event_stream(&response) {
        return End::Fatal(refused(job, response).await);
    }
    *failures = 0;
    job.endpoint.inbox.has_room().await;
    job.deliver(What::Open);
    let mut parser = Parser::new(reconnect.max_event_size, Arc::clone(&reconnect.last_event_id));
    loop {
        let read = match job.chunk(&mut response).await {
            Ok(Some(data)) => job.events(&mut parser, reconnect.max_event_size, &data).await.map_err(End::Fatal),
            Ok(None) => Err(End::Stream),
            Err(error) => Err(End::Broken(error)),
        };
        if let Some(delay) = parser.take_retry() {
            reconnect.delay = delay.min(reconnect.max_delay);
        }
        reconnect.last_event_id = Arc::clone(parser.last_event_id());
        if let Err(end) = read {
            return end;
        }
    }
}

async fn refused(job: &Job, mut response: Response) -> HttpError {
    let head = job.head(&response);
    let mut body = Vec::new();
    let _ = tokio::time::timeout(SAYING, async {
        // An error while it is read takes nothing from what was said before.
        while let Ok(Some(data)) = job.chunk(&mut response).await {
            body.extend_from_slice(&data[..data.len().min(SAID - body.len())]);
            if body.len() == SAID {
                break;
            }
        }
    })
    .await;
    let status = head.status.as_u16();
    let kind = head.headers.get(header::CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let text = match kind {
        _ if status == 204 => "204: there are no more events".to_owned(),
        Some(kind) if status == 200 => format!("content type {kind:?}, not text/event-stream"),
        None if status == 200 => "no content type, not text/event-stream".to_owned(),
        _ => format!("{status} {}", String::from_utf8_lossy(&head.reason)),
    };
    let url = head.url.clone();
    HttpError { kind: ErrorKind::Status(Box::new((*head, body))), text: format!("{url} answered with {text}"), url }
}

/// How long to wait before the next connection. After a stream that the server ended, what the server asked for; after
/// failures longer each time, and not all clients at once. `random`: from 0 to 1.
fn pause(reconnect: &Reconnect, failures: u32, random: f64) -> Duration {
    if failures == 0 {
        return reconnect.delay.min(reconnect.max_delay);
    }
    // 2^10 times the shortest sensible delay is above any sensible longest one.
    let factor = 1_u32 << (failures - 1).min(10);
    let longest = reconnect.delay.saturating_mul(factor).min(reconnect.max_delay);
    longest.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_are_jittered() {
        let reconnect = Reconnect {
            delay: Duration::from_secs(3),
            max_delay: Duration::from_secs(60),
            last_event_id: "".into(),
            max_event_size: 1,
        };
        let seconds = |failures, random| pause(&reconnect, failures, random).as_secs_f64();
        assert!((seconds(0, 0.0) - 3.0).abs() < 1e-9);
        for (failures, longest) in [(1, 3.0), (2, 6.0), (3, 12.0), (5, 48.0), (6, 60.0), (1000, 60.0)] {
            assert!((seconds(failures, 0.0) - longest / 2.0).abs() < 1e-6, "{failures}");
            assert!((seconds(failures, 1.0) - longest).abs() < 1e-6, "{failures}");
        }
    }
}
