//! Vectors of many texts: the engine has some of them at once, the next ones as these are done. Dropping a request cancels
//! what still runs.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::StatusCode;

use super::app::App;
use super::error::ApiError;
use super::generate::Usage;
use super::model::Served;
use super::trace::Trace;
use crate::engine::{Event, Finish, OutputKind, Pooling, Request, SubmitError, Ticket};

/// Bytes of vectors that may be in memory at once, of all requests together: those of 2,048 texts at 4,096 values, and as
/// many of others.
const VECTORS_BYTES_MAX: usize = 64 << 20;

thread_local! {
    /// Bytes of vectors that requests hold. Requests are all of one thread.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// How often a request whose texts have no place in the queue tries again.
const RETRY: Duration = Duration::from_millis(20);

/// Memory for the vectors of one request; given back when dropped.
struct Share(usize);

impl Share {
    /// # Errors
    /// 503 where others hold too much.
    fn take(bytes: usize) -> Result<Share, ApiError> {
        let held = HELD.get() + bytes;
        if held > VECTORS_BYTES_MAX {
            let text = format!(
                "the vectors of this request take {bytes} bytes, and all requests together may hold {VECTORS_BYTES_MAX}; \
                 send fewer texts at a time, or try again"
            );
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(1));
        }
        HELD.set(held);
        Ok(Share(bytes))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        HELD.set(HELD.get() - self.0);
    }
}

/// The vectors of a request's texts, in their order.
pub struct Vectors {
    /// One for each text, as long as the model makes them.
    pub all: Vec<Box<[f32]>>,
    /// Tokens of all texts.
    pub n_tokens: usize,
    _share: Share,
}

/// Texts on their way through the engine.
struct Texts<'s> {
    served: &'s Served,
    pooling: Pooling,
    /// Those that have not been handed over, last first.
    waiting: Vec<(usize, Vec<u32>)>,
    running: Vec<(usize, Ticket)>,
    all: Vec<Box<[f32]>>,
    usage: Usage,
}

/// Computes the vectors of `texts`, each of at least one token; `field` is where they came from, for errors.
///
/// # Errors
/// 400 for a text that is too long, 429 where the queue is full, 503 where nothing happens for too long, 500 where the
/// engine fails.
pub async fn of_texts(
    app: &App,
    served: &Served,
    texts: Vec<Vec<u32>>,
    field: &dyn Fn(usize) -> String,
    trace: &Rc<Trace>,
) -> Result<Vectors, ApiError> {
    let limits = served.limits();
    let Some(vectors) = limits.vectors else { return Err(ApiError::internal("this model makes no vectors")) };
    if let Some((i, text)) = texts.iter().enumerate().find(|(_, text)| text.len() > limits.tokens_max()) {
        let text = format!(
            "{}: {} tokens, and this model takes at most {} in one input; shorten it{}",
            field(i),
            text.len(),
            limits.tokens_max(),
            match served.about.ctx_train {
                Some(most) if most as usize > limits.tokens_max() => ", or have the server started with a larger --ctx",
                _ => "",
            }
        );
        return Err(ApiError::field(field(i), text).code("context_length_exceeded"));
    }
    let share = Share::take(texts.len() * limits.n_embd * size_of::<f32>())?;
    let n_tokens = texts.iter().map(Vec::len).sum();
    let mut work = Texts {
        served,
        pooling: vectors.pooling,
        all: vec![Box::default(); texts.len()],
        waiting: texts.into_iter().enumerate().rev().collect(),
        running: Vec::new(),
        usage: Usage { prompt: n_tokens, ..Usage::default() },
    };
    work.submit()?;
    if work.running.is_empty() {
        let stats = served.engine.stats();
        let text = format!("{} requests are already waiting; try again later", stats.queue_len);
        let patience = 1 + stats.queue_len / stats.n_slots.max(1);
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, text).code("queue_full");
        return Err(error.retry_after(patience as u32));
    }
    let patience = app.config.limits.first_token_time;
    let mut quiet_since = Instant::now();
    while !work.is_done() {
        // Where others have filled the queue it is looked at again, whatever comes of the texts that run.
        let retry = if work.submit()? { patience } else { RETRY };
        let n_before = work.left();
        tokio::time::timeout(retry, poll_fn(|cx| work.poll(cx))).await.unwrap_or(Ok(()))?;
        trace.counts(work.usage);
        if work.left() < n_before {
            quiet_since = Instant::now();
        } else if quiet_since.elapsed() >= patience {
            let seconds = patience.as_secs();
            let text = format!(
                "no text was read for {seconds} s (serve.limits.first_token_s): the box is busy; try again later"
            );
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text)
                .code("first_token_timeout")
                .retry_after(10));
        }
    }
    let len = limits.vector_len();
    let mut all = work.all;
    all.iter_mut().filter(|vector| vector.len() > len).for_each(|vector| *vector = vector[..len].into());
    Ok(Vectors { all, n_tokens, _share: share })
}

impl Texts<'_> {
    fn left(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    fn is_done(&self) -> bool {
        self.left() == 0
    }

    /// Hands texts to the engine: so many that the next pass finds as many as it takes, and that others still find a place in
    /// the queue. False where it has no place for them.
    fn submit(&mut self) -> Result<bool, ApiError> {
        let (slots, engine) = (self.served.limits().slots, &self.served.engine);
        while self.running.len() < 2 * slots {
            if !self.running.is_empty() && engine.queue_len() >= slots {
                return Ok(false);
            }
            let Some((index, text)) = self.waiting.pop() else { return Ok(true) };
            let request = Box::new(Request { prompt: text, output: OutputKind::Embedding(self.pooling) });
            match engine.submit(request) {
                Ok(ticket) => self.running.push((index, ticket)),
                Err(SubmitError::Busy(request)) => {
                    self.waiting.push((index, request.prompt));
                    return Ok(false);
                }
                Err(SubmitError::Stopping(_)) => {
                    return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping").retry_after(5));
                }
                Err(SubmitError::Invalid(_, error)) => return Err(ApiError::of_request(&error)),
            }
        }
        Ok(true)
    }

    /// Takes what the engine has; ready when there is a place for another text, or none is left.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ApiError>> {
        let n_before = self.running.len();
        let mut at = 0;
        while let Some((index, ticket)) = self.running.get_mut(at) {
            match ticket.poll_event(cx) {
                Poll::Pending => at += 1,
                Poll::Ready(Some(Event::Finished(Finish::Failed(e), _))) => {
                    return Poll::Ready(Err(ApiError::internal(format!("input {index} failed: {e}"))));
                }
                Poll::Ready(Some(Event::Finished(_, timings))) => {
                    self.usage.cached += timings.reused_tokens as usize;
                    self.all[*index] = ticket.take_embedding().unwrap_or_default();
                    self.running.swap_remove(at);
                }
                Poll::Ready(Some(_)) => {}
                Poll::Ready(None) => return Poll::Ready(Err(ApiError::internal("the engine has lost a text"))),
            }
        }
        if self.running.len() < n_before { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

/// Brings a vector to length 1 (llama.cpp's `embd_normalize` of 2); of next to nothing, nothing.
pub fn normalised(vector: &mut [f32]) {
    let sum: f64 = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    let scale = if sum > 0.0 { (1.0 / sum.sqrt()) as f32 } else { 0.0 };
    vector.iter_mut().for_each(|x| *x *= scale);
}
