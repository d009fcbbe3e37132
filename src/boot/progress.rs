//! The bar on a terminal while a model is being loaded.

use std::sync::atomic::AtomicU64;

#[cfg(not(feature = "progress"))]
pub(super) fn with_bar<T>(_total: u64, _done: &AtomicU64, work: impl FnOnce() -> T) -> T {
    work()
}

/// Shows a bar with GB/s on a terminal while `work` counts bytes in `done`; small loads are not worth one.
#[cfg(feature = "progress")]
pub(super) fn with_bar<T>(total: u64, done: &AtomicU64, work: impl FnOnce() -> T) -> T {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    if total < 64 * crate::units::MIB || !crate::sys::term::is_terminal(std::io::stderr()) {
        return work();
    }
    let bar = indicatif::ProgressBar::new(total);
    let style = indicatif::ProgressStyle::with_template("loading {bar:40} {bytes}/{total_bytes} {bytes_per_sec}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    let finished = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Where there is no thread for it, there is no bar.
        let _ =
            std::thread::Builder::new().name("progress".to_owned()).stack_size(256 << 10).spawn_scoped(scope, || {
                while !finished.load(Ordering::Relaxed) {
                    bar.set_position(done.load(Ordering::Relaxed));
                    std::thread::sleep(Duration::from_millis(100));
                }
                bar.finish_and_clear();
            });
        let result = work();
        finished.store(true, Ordering::Relaxed);
        result
    })
}
