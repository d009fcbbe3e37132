//! Model configuration, weight views, one file per architecture with one linear forward.
