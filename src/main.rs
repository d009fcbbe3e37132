//! The brim binary: hands the arguments to [`brim::cli`] and turns its verdict into an exit code.

#[global_allocator]
static ALLOCATOR: brim::sys::alloc::Counting = brim::sys::alloc::Counting;

fn main() -> std::process::ExitCode {
    brim::cli::main()
}
