//! The brim binary: hands the arguments to [`brim::cli`] and turns its verdict into an exit code.

fn main() -> std::process::ExitCode {
    brim::cli::main()
}
