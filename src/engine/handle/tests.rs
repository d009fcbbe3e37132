use super::*;
use crate::sampling::SamplingParams;

const LIMITS: Limits = Limits { ctx: 64, n_vocab: 100, slots: 1, queue: 2, kv_tokens: 64 };

fn request() -> Box<Request> {
    Box::new(Request { prompt: vec![1, 2], max_tokens: 3, ..Request::default() })
}

fn step(token: u32) -> Event {
    Event::Step(super::super::Step { token, logprob: 0.0, top: [(0, 0.0); TOP_LOGPROBS_MAX], n_top: 0 })
}

fn poll(ticket: &mut Ticket) -> Poll<Option<Event>> {
    ticket.poll_event(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn events_arrive_in_order_and_end() {
    let (shared, handle) = Shared::new(LIMITS);
    let mut ticket = handle.submit(request()).unwrap();
    assert_eq!(poll(&mut ticket), Poll::Pending);
    let job = shared.next_job().unwrap();
    assert_eq!(*job.request, *request());
    let end = Event::Finished(Finish::Length, Timings::default());
    let events = [Event::Started { reused_tokens: 0 }, step(5), step(6), end];
    for event in &events[..3] {
        shared.send(job.door, *event);
    }
    shared.finish(job, Finish::Length, Timings::default());
    for event in events {
        assert_eq!(poll(&mut ticket), Poll::Ready(Some(event)));
    }
    assert_eq!(poll(&mut ticket), Poll::Ready(None));
    assert_eq!(handle.stats().finished, 1);
}

#[test]
fn the_queue_takes_what_it_holds_and_hands_one_more_back() {
    let (shared, handle) = Shared::new(LIMITS);
    let _running = handle.submit(request()).unwrap();
    let job = shared.next_job().unwrap();
    let first = handle.submit(request()).unwrap();
    let second = handle.submit(request()).unwrap();
    assert_eq!(handle.submit(request()).unwrap_err(), SubmitError::Busy(request()));
    assert_eq!(handle.stats().queue_len, 2);
    // A client that waits in the queue and goes away makes room at once.
    drop(first);
    let third = handle.submit(request()).unwrap();
    assert!(handle.submit(request()).is_err());
    // In order of arrival.
    let doors = [shared.next_job().unwrap().door, shared.next_job().unwrap().door];
    assert_eq!(doors, [second.door, third.door]);
    assert!(shared.next_job().is_none());
    assert!(!shared.is_gone(job.door));
}

#[test]
fn doors_come_back_whoever_leaves_last() {
    let (shared, handle) = Shared::new(LIMITS);
    for round in 0..100 {
        let mut ticket = handle.submit(request()).unwrap();
        let job = shared.next_job().unwrap();
        match round % 3 {
            0 => {
                drop(ticket);
                assert!(shared.is_gone(job.door));
                shared.finish(job, Finish::Cancelled, Timings::default());
            }
            1 => {
                shared.finish(job, Finish::EndOfGeneration, Timings::default());
                drop(ticket);
            }
            _ => {
                shared.finish(job, Finish::EndOfGeneration, Timings::default());
                while ticket.wait_event().is_some() {}
                drop(ticket);
            }
        }
        assert_eq!(lock(&shared.desk).free.len(), 3, "round {round}");
    }
    let stats = handle.stats();
    assert_eq!((stats.cancelled, stats.finished), (34, 66));
}

#[test]
fn a_client_that_is_behind_rings_once_there_is_room_again() {
    let (shared, handle) = Shared::new(LIMITS);
    let mut ticket = handle.submit(request()).unwrap();
    let job = shared.next_job().unwrap();
    let mut sent = 0;
    while shared.room(job.door) > 0 {
        shared.send(job.door, step(sent));
        sent += 1;
    }
    assert_eq!(sent as usize, EVENTS_MAX - 1);
    let rung = shared.rung();
    assert!(poll(&mut ticket).is_ready());
    assert_ne!(shared.rung(), rung);
    assert_eq!(shared.room(job.door), 1);
}

#[test]
fn a_mask_counts_once() {
    let (shared, handle) = Shared::new(LIMITS);
    let ticket = handle.submit(Box::new(Request { constraint: true, ..*request() })).unwrap();
    let job = shared.next_job().unwrap();
    assert!(shared.take_mask(job.door).is_none());
    ticket.set_mask(&[1, 2, 3, 4]);
    let mask = shared.take_mask(job.door).unwrap();
    assert_eq!(*mask, [1, 2, 3, 4]);
    shared.return_mask(job.door, mask);
    assert!(shared.take_mask(job.door).is_none());
    ticket.set_mask(&[5; 4]);
    assert!(shared.take_mask(job.door).is_some());
}

#[test]
fn a_stopping_engine_takes_nothing_and_ends_with_its_queue() {
    let (shared, handle) = Shared::new(LIMITS);
    let ticket = handle.submit(request()).unwrap();
    handle.stop();
    assert!(matches!(handle.submit(request()), Err(SubmitError::Stopping(_))));
    assert!(!shared.is_stopping());
    drop(ticket);
    assert!(shared.is_stopping());
}

#[test]
fn what_cannot_be_served_is_refused_at_the_limit_and_not_before() {
    let (_, handle) = Shared::new(LIMITS);
    let check = |change: &dyn Fn(&mut Request)| {
        let mut request = request();
        change(&mut request);
        handle.limits().check(&request)
    };
    use crate::engine::RequestError::*;
    assert_eq!(check(&|r| r.prompt.clear()), Err(NoPrompt));
    assert_eq!(check(&|r| r.max_tokens = 0), Err(NoTokens));
    assert_eq!(check(&|r| r.prompt[1] = 99), Ok(()));
    assert_eq!(check(&|r| r.prompt[1] = 100), Err(PromptToken { id: 100, n_vocab: 100 }));
    assert_eq!(check(&|r| r.max_tokens = 62), Ok(()));
    assert_eq!(check(&|r| r.max_tokens = 63), Err(Context { prompt: 2, max_tokens: 63, limit: 64 }));
    assert_eq!(check(&|r| r.max_tokens = usize::MAX), Err(Context { prompt: 2, max_tokens: usize::MAX, limit: 64 }));
    assert_eq!(check(&|r| r.logit_bias = vec![(99, 1.0); 1024]), Ok(()));
    assert_eq!(check(&|r| r.logit_bias = vec![(99, 1.0); 1025]), Err(Biases { found: 1025 }));
    assert_eq!(check(&|r| r.logit_bias = vec![(100, 1.0)]), Err(BiasToken { id: 100, n_vocab: 100 }));
    assert_eq!(check(&|r| r.logit_bias = vec![(7, f32::NAN)]), Err(BiasNaN { id: 7 }));
    assert_eq!(check(&|r| r.n_top_logprobs = Some(20)), Ok(()));
    assert_eq!(check(&|r| r.n_top_logprobs = Some(21)), Err(TopLogprobs { found: 21 }));
    let hot = |r: &mut Request| r.sampling = SamplingParams { temp: -1.0, ..SamplingParams::default() };
    assert!(matches!(check(&hot), Err(Sampling(_))));
    assert!(matches!(handle.submit(Box::new(Request::default())), Err(SubmitError::Invalid(_, NoPrompt))));
}
