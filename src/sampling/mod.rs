//! From logits to the next token: a leaf without clock or I/O, the seed is passed in.
