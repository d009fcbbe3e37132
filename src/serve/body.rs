//! Bodies: an answer in one piece, or one that is made while it is sent; and a request's body within its limits.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use hyper::StatusCode;
use hyper::body::{Body as _, Bytes, Frame, Incoming, SizeHint};

use super::error::ApiError;

/// What the future behind a streamed body writes to; what has been written goes out when it next waits.
pub type Sink = Rc<RefCell<Vec<u8>>>;

/// The future behind a streamed body: to drop the body is to drop it, and with it everything it holds.
type Producer = Pin<Box<dyn Future<Output = ()>>>;

enum Kind {
    Whole(Bytes),
    Streamed { producer: Option<Producer>, sink: Sink },
}

/// The body of an answer.
pub struct Body {
    kind: Kind,
    /// Dropped with the body, when the answer is complete or the client gone.
    _guard: Option<Box<dyn std::any::Any>>,
}

impl Body {
    /// A body in one piece.
    pub fn whole(bytes: impl Into<Bytes>) -> Body {
        Body { kind: Kind::Whole(bytes.into()), _guard: None }
    }

    /// A body that `make` writes while it is sent.
    pub fn streamed<F: Future<Output = ()> + 'static>(make: impl FnOnce(Sink) -> F) -> Body {
        let sink = Sink::default();
        let producer: Producer = Box::pin(make(Rc::clone(&sink)));
        Body { kind: Kind::Streamed { producer: Some(producer), sink }, _guard: None }
    }

    /// Keeps `guard` until the body is gone.
    #[must_use]
    pub fn guarded(self, guard: Box<dyn std::any::Any>) -> Body {
        Body { _guard: Some(guard), ..self }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut self.kind {
            Kind::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Streamed { producer, sink } => {
                if let Some(running) = producer
                    && running.as_mut().poll(cx).is_ready()
                {
                    *producer = None;
                }
                let written = std::mem::take(&mut *sink.borrow_mut());
                match (written.is_empty(), producer.is_none()) {
                    (false, _) => Poll::Ready(Some(Ok(Frame::data(written.into())))),
                    (true, true) => Poll::Ready(None),
                    (true, false) => Poll::Pending,
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.kind, Kind::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Streamed { .. } => SizeHint::default(),
        }
    }
}

/// Bytes of request bodies that may be in memory at once, shared by all connections.
#[derive(Debug)]
pub struct Budget {
    left: std::cell::Cell<usize>,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(bytes: usize) -> Rc<Budget> {
        Rc::new(Budget { left: std::cell::Cell::new(bytes) })
    }
}

/// Bytes taken from a budget; given back when dropped.
struct Share {
    budget: Rc<Budget>,
    bytes: usize,
}

impl Share {
    fn take(&mut self, bytes: usize) -> bool {
        let left = self.budget.left.get();
        if left < bytes {
            return false;
        }
        self.budget.left.set(left - bytes);
        self.bytes += bytes;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.left.set(self.budget.left.get() + self.bytes);
    }
}

/// A request's body, counted against the budget for as long as it is kept.
pub struct Received {
    /// What came.
    pub bytes: Vec<u8>,
    _share: Share,
}

/// Receives a body of at most `limit` bytes.
///
/// # Errors
/// 413 for a longer one, before it is read where its length is stated; 503 where the bodies of others fill the budget;
/// 400 for one that breaks off.
pub async fn receive(mut body: Incoming, limit: usize, budget: &Rc<Budget>) -> Result<Received, ApiError> {
    let too_long = |found: u64| {
        let text = format!("the body has {found} bytes or more; the limit is {limit} (serve.limits.body_kib)");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, text)
    };
    let stated = body.size_hint().lower();
    if stated > limit as u64 {
        return Err(too_long(stated));
    }
    let mut share = Share { budget: Rc::clone(budget), bytes: 0 };
    let mut bytes = Vec::new();
    loop {
        let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        let data = match frame {
            None => return Ok(Received { bytes, _share: share }),
            Some(Err(e)) => {
                return Err(ApiError::bad(format!("the connection failed before the body was complete: {e}")));
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                // Trailers say nothing that matters here.
                Err(_) => continue,
            },
        };
        if bytes.len() + data.len() > limit {
            return Err(too_long((bytes.len() + data.len()) as u64));
        }
        if !share.take(data.len()) {
            let text = "the bodies of other requests fill the memory set aside for bodies; try again";
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(1));
        }
        bytes.extend_from_slice(&data);
    }
}
