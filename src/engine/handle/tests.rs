use super::super::channel::EVENTS_MAX;
use super::super::request::{TOP_LOGPROBS_MAX, Timings};
use super::*;
use crate::engine::error::EngineError;
use crate::engine::request::Pooling;
use crate::sampling::SamplingParams;

const LIMITS: RequestLimits = RequestLimits {
    ctx: 64,
    n_embd: 8,
    n_vocab: 100,
    slots: 1,
    queue: 2,
    kv_tokens: 64,
    pass_tokens: usize::MAX,
    vectors: None,
};

fn request() -> Box<Request> {
    with(Generate::default())
}

fn with(generate: Generate) -> Box<Request> {
    Box::new(Request { prompt: vec![1, 2], output: OutputKind::Tokens(Generate { max_tokens: 3, ..generate }) })
}

fn embedding(n_prompt: usize) -> Box<Request> {
    Box::new(Request { prompt: vec![1; n_prompt], output: OutputKind::Embedding(Pooling::Last) })
}

fn step(token: u32) -> Event {
    Event::Step(super::super::Step { token, logprob: 0.0, top: [(0, 0.0); TOP_LOGPROBS_MAX], n_top: 0 })
}

fn poll(ticket: &mut Ticket) -> Poll<Option<Event>> {
    ticket.poll_event(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn events_arrive_in_order_and_end() {
    let (channel, handle) = EngineHandle::new(LIMITS, Arc::default());
    let mut ticket = handle.submit(request()).unwrap();
    assert_eq!(poll(&mut ticket), Poll::Pending);
    let submission = channel.next_submission().unwrap();
    assert_eq!(*submission.request, *request());
    let end = Event::Finished(Finish::Length, Timings::default());
    let events = [Event::Started { reused_tokens: 0 }, step(5), step(6), end];
    for event in &events[..3] {
        channel.send(submission.mailbox, *event);
    }
    channel.finish(submission, Finish::Length, Timings::default());
    for event in events {
        assert_eq!(poll(&mut ticket), Poll::Ready(Some(event)));
    }
    assert_eq!(poll(&mut ticket), Poll::Ready(None));
    assert_eq!(handle.stats().finished, 1);
}

#[test]
fn the_queue_takes_what_it_holds_and_hands_one_more_back() {
    let (channel, handle) = EngineHandle::new(LIMITS, Arc::default());
    let _running = handle.submit(request()).unwrap();
    let submission = channel.next_submission().unwrap();
    let first = handle.submit(request()).unwrap();
    let second = handle.submit(request()).unwrap();
    assert_eq!(handle.submit(request()).unwrap_err(), SubmitError::Busy(request()));
    assert_eq!(handle.stats().queue_len, 2);
    // A client that waits in the queue and goes away makes room at once.
    drop(first);
    let third = handle.submit(request()).unwrap();
    assert!(handle.submit(request()).is_err());
    // In order of arrival.
    let mailboxes = [channel.next_submission().unwrap().mailbox, channel.next_submission().unwrap().mailbox];
    assert_eq!(mailboxes, [second.mailbox, third.mailbox]);
    assert!(channel.next_submission().is_none());
    assert!(!channel.is_cancelled(submission.mailbox));
}

#[test]
fn mailboxes_come_back_whoever_leaves_last() {
    let (channel, handle) = EngineHandle::new(LIMITS, Arc::default());
    for round in 0..100 {
        let mut ticket = handle.submit(request()).unwrap();
        let submission = channel.next_submission().unwrap();
        match round % 3 {
            0 => {
                drop(ticket);
                assert!(channel.is_cancelled(submission.mailbox));
                channel.finish(submission, Finish::Cancelled, Timings::default());
            }
            1 => {
                channel.finish(submission, Finish::EndOfGeneration, Timings::default());
                drop(ticket);
            }
            _ => {
                channel.finish(submission, Finish::EndOfGeneration, Timings::default());
                while ticket.wait_event().is_some() {}
                drop(ticket);
            }
        }
        assert_eq!(channel.n_free(), 3, "round {round}");
    }
    let stats = handle.stats();
    assert_eq!((stats.cancelled, stats.finished), (34, 66));
}

#[test]
fn a_client_that_is_behind_wakes_the_engine_once_there_is_room_again() {
    let (channel, handle) = EngineHandle::new(LIMITS, Arc::default());
    let mut ticket = handle.submit(request()).unwrap();
    let submission = channel.next_submission().unwrap();
    let mut sent = 0;
    while channel.room(submission.mailbox) > 0 {
        channel.send(submission.mailbox, step(sent));
        sent += 1;
    }
    assert_eq!(sent as usize, EVENTS_MAX - 1);
    let wakeups = channel.bell.rings();
    assert!(poll(&mut ticket).is_ready());
    assert_ne!(channel.bell.rings(), wakeups);
    assert_eq!(channel.room(submission.mailbox), 1);
}

#[test]
fn a_mask_counts_once() {
    let (channel, handle) = EngineHandle::new(LIMITS, Arc::default());
    let ticket = handle.submit(with(Generate { constraint: true, ..Generate::default() })).unwrap();
    let submission = channel.next_submission().unwrap();
    assert!(channel.take_mask(submission.mailbox).is_none());
    ticket.set_mask(&[1, 2, 3, 4]);
    let mask = channel.take_mask(submission.mailbox).unwrap();
    assert_eq!(*mask, [1, 2, 3, 4]);
    channel.return_mask(submission.mailbox, mask);
    assert!(channel.take_mask(submission.mailbox).is_none());
    ticket.set_mask(&[5; 4]);
    assert!(channel.take_mask(submission.mailbox).is_some());
}

#[test]
fn an_embedding_is_handed_over_once_and_only_if_it_came_to_its_end() {
    let (channel, handle) = EngineHandle::new(LIMITS, Arc::default());
    for finish in [Finish::Embedded, Finish::Failed(EngineError::HiddenState { index: 3 })] {
        let mut ticket = handle.submit(embedding(5)).unwrap();
        let submission = channel.next_submission().unwrap();
        assert!(submission.sampler.is_none());
        let mut vector = channel.take_embedding(submission.mailbox).unwrap();
        assert_eq!(*vector, [0.0; 8]);
        assert!(channel.take_embedding(submission.mailbox).is_none() && ticket.take_embedding().is_none());
        vector[2] = 1.5;
        channel.return_embedding(submission.mailbox, vector);
        assert!(ticket.take_embedding().is_none(), "it is not over yet");
        channel.finish(submission, finish, Timings::default());
        assert!(poll(&mut ticket).is_ready());
        let expected = matches!(finish, Finish::Embedded).then(|| vec![0.0, 0.0, 1.5, 0.0, 0.0, 0.0, 0.0, 0.0].into());
        assert_eq!(ticket.take_embedding(), expected);
        assert_eq!(ticket.take_embedding(), None);
    }
}

#[test]
fn a_stopping_engine_takes_nothing_and_ends_with_its_queue() {
    let (channel, handle) = EngineHandle::new(LIMITS, Arc::default());
    let ticket = handle.submit(request()).unwrap();
    handle.stop();
    assert!(matches!(handle.submit(request()), Err(SubmitError::Stopping(_))));
    assert!(!channel.is_stopping());
    drop(ticket);
    assert!(channel.is_stopping());
}

#[test]
fn what_cannot_be_served_is_refused_at_the_limit_and_not_before() {
    let (_, handle) = EngineHandle::new(LIMITS, Arc::default());
    let limits = handle.limits();
    let check = |change: &dyn Fn(&mut Vec<u32>, &mut Generate)| {
        let (mut prompt, mut generate) = (vec![1, 2], Generate { max_tokens: 3, ..Generate::default() });
        change(&mut prompt, &mut generate);
        limits
            .check(&Request { prompt, output: OutputKind::Tokens(generate) })
            .map(|sampler| assert!(sampler.is_some()))
    };
    use crate::engine::RequestError::*;
    assert_eq!(check(&|prompt, _| prompt.clear()), Err(NoPrompt));
    // To read needs no room for anything after the prompt.
    assert_eq!(check(&|_, g| g.max_tokens = 0), Ok(()));
    assert_eq!(check(&|prompt, g| (*prompt, g.max_tokens) = (vec![1; 64], 0)), Ok(()));
    let too_long = |prompt: &mut Vec<u32>, g: &mut Generate| (*prompt, g.max_tokens) = (vec![1; 65], 0);
    assert_eq!(check(&too_long), Err(PromptLength { found: 65, limit: 63 }));
    assert_eq!(check(&|prompt, _| prompt[1] = 99), Ok(()));
    assert_eq!(check(&|prompt, _| prompt[1] = 100), Err(PromptToken { id: 100, n_vocab: 100 }));
    assert_eq!(check(&|_, g| g.max_tokens = 62), Ok(()));
    assert_eq!(check(&|_, g| g.max_tokens = 63), Err(Context { prompt: 2, max_tokens: 63, limit: 64 }));
    assert_eq!(check(&|_, g| g.max_tokens = usize::MAX), Err(Context { prompt: 2, max_tokens: usize::MAX, limit: 64 }));
    assert_eq!(check(&|_, g| g.logit_bias = vec![(99, 1.0); 1024]), Ok(()));
    assert_eq!(check(&|_, g| g.logit_bias = vec![(99, 1.0); 1025]), Err(Biases { found: 1025 }));
    assert_eq!(check(&|_, g| g.logit_bias = vec![(100, 1.0)]), Err(BiasToken { id: 100, n_vocab: 100 }));
    assert_eq!(check(&|_, g| g.logit_bias = vec![(7, f32::NAN)]), Err(BiasNaN { id: 7 }));
    assert_eq!(check(&|_, g| g.n_top_logprobs = Some(20)), Ok(()));
    assert_eq!(check(&|_, g| g.n_top_logprobs = Some(21)), Err(TopLogprobs { found: 21 }));
    let hot =
        |_: &mut Vec<u32>, g: &mut Generate| g.sampling = SamplingParams { temp: -1.0, ..SamplingParams::default() };
    assert!(matches!(check(&hot), Err(Sampling(_))));
    assert_eq!(check(&|prompt, _| prompt.resize(63, 1)), Err(Context { prompt: 63, max_tokens: 3, limit: 64 }));
    assert_eq!(check(&|prompt, _| prompt.resize(64, 1)), Err(PromptLength { found: 64, limit: 63 }));
    assert_eq!((limits.room(0), limits.room(2), limits.room(63)), (Err(NoPrompt), Ok(62), Ok(1)));
    // An embedding needs no room for anything after its prompt.
    assert!(matches!(limits.check(&embedding(64)), Ok(None)));
    assert!(matches!(limits.check(&embedding(65)), Err(TextLength { found: 65, limit: 64 })));
    assert!(matches!(limits.check(&embedding(0)), Err(NoPrompt)));
    assert!(matches!(handle.submit(embedding(0)), Err(SubmitError::Invalid(_, NoPrompt))));
}
