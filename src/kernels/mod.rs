//! Matrix and vector kernels, one table per CPU tier, chosen once at start.
