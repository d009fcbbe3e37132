//! Threads for work that would hold up the event loop.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use tokio::sync::oneshot;

use super::error::ApiError;

/// Stack of a thread. It takes no memory until it is used.
const STACK_BYTES: usize = 2 << 20;

type Task = Box<dyn FnOnce() + Send>;

/// The threads; they end with their last handle. Started with the server, so that no request depends on whether the system
/// has a thread to give.
#[derive(Clone)]
pub struct Background {
    tasks: mpsc::Sender<Task>,
}

impl Background {
    /// Starts `n` threads of this name.
    ///
    /// # Errors
    /// What the system says of threads.
    pub fn start(name: &str, n: usize) -> io::Result<Background> {
        let (tasks, todo) = mpsc::channel::<Task>();
        let todo = Arc::new(Mutex::new(todo));
        for _ in 0..n {
            let todo = Arc::clone(&todo);
            // Whoever waits for a task has the lock, and lets go of it before the work.
            let next = move || todo.lock().unwrap_or_else(PoisonError::into_inner).recv().ok();
            let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES);
            thread.spawn(move || std::iter::from_fn(next).for_each(|task| task()))?;
        }
        Ok(Background { tasks })
    }

    /// Waits for `work`, which is begun after what was asked for before. Work that nobody waits for any more is skipped.
    ///
    /// # Errors
    /// 500 where the threads have ended, which they do not while there is a handle.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let task = move || {
            if !reply.is_closed() {
                let _ = reply.send(work());
            }
        };
        let ended = |()| ApiError::internal("the threads for long work have ended");
        self.tasks.send(Box::new(task)).map_err(|_| ended(()))?;
        answer.await.map_err(|_| ended(()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn work_is_done_in_its_order_and_not_for_who_has_gone() {
        static DONE: AtomicUsize = AtomicUsize::new(0);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let background = Background::start("test", 1).unwrap();
        let (go, wait) = mpsc::channel::<()>();
        runtime.block_on(async {
            let first = background.run(move || wait.recv().map(|()| DONE.fetch_add(1, Ordering::Relaxed)));
            let mut gone = Box::pin(background.run(|| DONE.fetch_add(100, Ordering::Relaxed)));
            let last = background.run(|| DONE.load(Ordering::Relaxed));
            let release = async {
                // The second has been asked for, and is given up before its turn.
                tokio::select! {
                    biased;
                    _ = &mut gone => panic!("it is not its turn"),
                    () = std::future::ready(()) => drop(gone),
                }
                go.send(()).unwrap();
            };
            let (first, (), last) = tokio::join!(first, release, last);
            assert_eq!((first.unwrap(), last.unwrap()), (Ok(0), 1));
        });
    }
}
