use super::slot::CALLER_SPIN;
use super::*;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

fn three_workers() -> Workers {
    let cpus = cpu::allowed().unwrap();
    let wanted: Vec<usize> = (0..3).map(|i| cpus[i % cpus.len()]).collect();
    Workers::start(&wanted).unwrap()
}

#[test]
fn a_pool_that_has_started_has_all_its_workers() {
    for _ in 0..50 {
        let pool = three_workers();
        assert!(pool.shared.slots.iter().all(|slot| slot.0.thread.load(Ordering::Relaxed) != 0));
    }
}

#[test]
fn every_worker_runs_every_job_once() {
    let pool = three_workers();
    let counts: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
    for round in 0..2000 {
        pool.run(&|worker| {
            counts[worker].fetch_add(1, Ordering::Relaxed);
        });
        if round % 500 == 0 {
            // Long enough for the workers to fall asleep.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 2000));
}

#[test]
fn drawn_work_is_done_once_and_seen_by_the_caller() {
    let pool = three_workers();
    let mut data = vec![0u32; 1000];
    for round in 0..2000 {
        let next = AtomicUsize::new(0);
        let cells: Vec<AtomicU32> = data.iter().map(|&x| AtomicU32::new(x)).collect();
        pool.run_dynamic(&|_| {
            while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                cell.store(cell.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            }
        });
        data = cells.into_iter().map(AtomicU32::into_inner).collect();
        assert!(data.iter().all(|&x| x == round + 1), "round {round}");
        if round % 500 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_worker_without_a_cpu_is_not_waited_for() {
    let cpu = cpu::allowed().unwrap()[0];
    std::thread::spawn(move || {
        // The worker gets the CPU only when the caller sleeps or its time slice is over.
        let pool = Workers::start(&[cpu, cpu]).unwrap();
        let begun = Instant::now();
        (0..20_000).for_each(|_| pool.run_dynamic(&|_| ()));
        let taken = begun.elapsed();
        assert!(taken < 20_000 * CALLER_SPIN / 4, "{taken:?}");
    })
    .join()
    .unwrap();
}
