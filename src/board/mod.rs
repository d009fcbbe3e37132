//! Board files: sizes and policy of one kind of box. No hardware access.
