//! Worker pool, KV cache, prefill and decode.
