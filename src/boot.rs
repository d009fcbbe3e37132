//! The start-up story: board, probe, header, plan, reserve, load, seal, run.
