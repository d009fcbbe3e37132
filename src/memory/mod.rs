//! The plan (pure arithmetic over named regions), the huge-page pool, and the arena mapped over the plan.
