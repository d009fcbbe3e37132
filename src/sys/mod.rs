//! Every system call brim makes, and nothing else.
