use super::*;
use crate::model::cache::{PoolSpec, Window};

/// Tokens of page `i` of text `text`.
fn page(text: u32, i: u32) -> Vec<u32> {
    (0..PAGE_TOKENS as u32).map(|t| text * 10_000 + i * 100 + t).collect()
}

fn text(pages: &[(u32, u32)]) -> Vec<u32> {
    pages.iter().flat_map(|&(text, i)| page(text, i)).collect()
}

/// Pages of the full pool, of one of windows, and checkpoints, for four sequences.
fn plan(n_pages: usize, windows: Option<(usize, usize)>, n_checkpoints: usize) -> CachePlan {
    let mut pools = heapless::Vec::new();
    pools.push(PoolSpec { window: None, n_pages }).unwrap();
    if let Some((window, n_pages)) = windows {
        pools.push(PoolSpec { window: Some(Window::Sliding(window)), n_pages }).unwrap();
    }
    let state_bytes = if n_checkpoints > 0 { 64 } else { 0 };
    CachePlan { layers: Vec::new(), pools, state_bytes, n_live_states: 4, n_checkpoints }
}

/// A checkpoint after every page.
fn every() -> Stops {
    Stops::kept_after(1..=16)
}

/// A sequence that computes and publishes `tokens`, whole pages, after what it can take over; returns how many pages that was.
fn compute(pages: &mut Pages<'_>, table: &mut Table, tokens: &[u32]) -> usize {
    compute_with(pages, table, tokens, &every())
}

/// The same with checkpoints where `stops` says.
fn compute_with(pages: &mut Pages<'_>, table: &mut Table, tokens: &[u32], stops: &Stops) -> usize {
    let Adopted { mut serial, .. } = pages.adopt(table, ROOT, tokens);
    let reused = table.len();
    for (index, tokens) in tokens.chunks_exact(PAGE_TOKENS).enumerate().skip(reused) {
        let position = index * PAGE_TOKENS;
        assert!(pages.extend(table, position, PAGE_TOKENS, stops));
        let slice = table.slice(0, PAGE_TOKENS, position);
        assert!(table.state == NONE || (slice.state_before == NONE) == (position == 0));
        pages.advance(table, position + PAGE_TOKENS);
        serial = pages.publish(table, index, serial, tokens);
    }
    reused
}

/// Every page is owned, idle or free, and what is published is found.
fn check(pages: &Pages<'_>) {
    for pool in pages.attachments.iter().map(|attachment| &attachment.pool).chain([&pages.full]) {
        let mut idle = 0;
        let mut at = pool.links[pool.head() as usize][NEXT];
        while at != pool.head() {
            assert_eq!(pool.owners[at as usize], 0);
            idle += 1;
            at = pool.links[at as usize][NEXT];
        }
        let owned = pool.owners.iter().filter(|&&owners| owners > 0).count();
        assert_eq!((idle, owned + pool.available()), (pool.n_idle, pool.owners.len()));
        assert!(pool.free.iter().all(|&page| pool.owners[page as usize] == 0));
    }
    for (page, node) in (0..).zip(&pages.nodes).filter(|(_, node)| node.serial != ROOT) {
        assert_eq!(pages.find(node.parent, pages.page_tokens(page)), Some(page));
        for (attachment, &id) in pages.attachments.iter().zip(&node.attached) {
            assert!(id == NONE || attachment.page_of[id as usize] == page);
        }
    }
}

fn with_pages(plan: &CachePlan, work: impl FnOnce(&mut Pages<'_>)) {
    let mut tokens = vec![0; plan.pools[FULL].n_pages * PAGE_TOKENS];
    let mut pages = Pages::new(plan, &mut tokens);
    work(&mut pages);
    check(&pages);
}

#[test]
fn a_prefix_is_found_while_its_pages_are_there() {
    let plan = plan(8, None, 0);
    with_pages(&plan, |pages| {
        let mut first = Table::new(&plan, 8 * PAGE_TOKENS, 0);
        assert_eq!(compute(pages, &mut first, &text(&[(1, 0), (1, 1), (1, 2)])), 0);
        let mut second = Table::new(&plan, 8 * PAGE_TOKENS, 0);
        // While the first still has them; what is behind another beginning is another.
        assert_eq!(compute(pages, &mut second, &text(&[(1, 0), (1, 1), (2, 2)])), 2);
        assert_eq!(first.pages[FULL][..2], second.pages[FULL][..2]);
        assert_eq!(pages.counts(), [4, 0, 8]);
        pages.truncate(&mut first, 0);
        pages.truncate(&mut second, 0);
        assert_eq!(pages.counts(), [0, 4, 8]);
        assert_eq!(compute(pages, &mut first, &text(&[(2, 2), (1, 1)])), 0);
        pages.truncate(&mut first, 0);
        assert_eq!(compute(pages, &mut first, &text(&[(1, 0), (1, 1), (1, 2)])), 3);
    });
}

#[test]
fn what_was_owned_longest_ago_goes_first_and_ends_before_beginnings() {
    let plan = plan(6, None, 0);
    with_pages(&plan, |pages| {
        let mut table = Table::new(&plan, 6 * PAGE_TOKENS, 0);
        for n in [1, 2] {
            compute(pages, &mut table, &text(&[(n, 0), (n, 1), (n, 2)]));
            pages.truncate(&mut table, 0);
        }
        // Two more pages take the place of the end of the older text.
        compute(pages, &mut table, &text(&[(3, 0), (3, 1)]));
        check(pages);
        pages.truncate(&mut table, 0);
        assert_eq!(
            pages.adopt(&mut table, ROOT, &text(&[(1, 0), (1, 1), (1, 2)])).serial,
            pages.nodes[table.pages[FULL][0] as usize].serial
        );
        assert_eq!(table.len(), 1);
        pages.truncate(&mut table, 0);
        assert_eq!(compute(pages, &mut table, &text(&[(2, 0), (2, 1), (2, 2)])), 3);
        pages.truncate(&mut table, 0);
        assert_eq!(compute(pages, &mut table, &text(&[(3, 0), (3, 1)])), 2);
    });
}

#[test]
fn of_two_that_compute_the_same_one_copy_stays() {
    let plan = plan(8, None, 0);
    with_pages(&plan, |pages| {
        let tokens = text(&[(1, 0), (1, 1)]);
        let mut tables = [(); 2].map(|()| Table::new(&plan, 8 * PAGE_TOKENS, 0));
        for table in &mut tables {
            assert!(pages.extend(table, 0, 2 * PAGE_TOKENS, &every()));
        }
        assert_eq!(pages.counts(), [4, 0, 8]);
        for table in &mut tables {
            let serial = pages.publish(table, 0, ROOT, &tokens[..PAGE_TOKENS]);
            pages.publish(table, 1, serial, &tokens[PAGE_TOKENS..]);
        }
        assert_eq!(tables[0].pages[FULL], tables[1].pages[FULL]);
        assert_eq!(pages.counts(), [2, 0, 8]);
        pages.truncate(&mut tables[0], 0);
        assert_eq!(pages.counts(), [2, 0, 8]);
        pages.truncate(&mut tables[1], 0);
        assert_eq!(pages.counts(), [0, 2, 8]);
    });
}

#[test]
fn one_page_more_than_there_are_is_not_given() {
    let plan = plan(3, None, 0);
    with_pages(&plan, |pages| {
        let mut tables = [(); 2].map(|()| Table::new(&plan, 4 * PAGE_TOKENS, 0));
        let stops = every();
        assert!(pages.extend(&mut tables[0], 0, 2 * PAGE_TOKENS, &stops));
        assert!(pages.extend(&mut tables[1], 0, 1, &stops));
        assert!(pages.extend(&mut tables[1], 1, PAGE_TOKENS - 1, &stops));
        assert!(!pages.extend(&mut tables[1], PAGE_TOKENS, 1, &stops));
        pages.truncate(&mut tables[0], PAGE_TOKENS);
        assert!(pages.extend(&mut tables[1], PAGE_TOKENS, 1, &stops));
    });
}

#[test]
fn what_is_withdrawn_is_not_found_and_goes_when_its_owners_do() {
    let plan = plan(4, Some((70, 4)), 0);
    with_pages(&plan, |pages| {
        let mut tables = [(); 2].map(|()| Table::new(&plan, 4 * PAGE_TOKENS, 0));
        let tokens = text(&[(1, 0), (1, 1)]);
        compute(pages, &mut tables[0], &tokens);
        compute(pages, &mut tables[1], &tokens);
        pages.withdraw_all(&tables[0]);
        check(pages);
        pages.truncate(&mut tables[0], 0);
        assert_eq!(pages.counts(), [2, 0, 4]);
        pages.truncate(&mut tables[1], 0);
        assert_eq!(pages.counts(), [0, 0, 4]);
        assert_eq!(compute(pages, &mut tables[0], &tokens), 0);
    });
}

#[test]
fn a_prefix_is_continued_where_its_last_window_is_still_there() {
    // A window of 100 positions: at the end of a page, it and the one before.
    let plan = plan(16, Some((100, 5)), 0);
    with_pages(&plan, |pages| {
        let mut table = Table::new(&plan, 16 * PAGE_TOKENS, 0);
        let long: Vec<(u32, u32)> = (0..8).map(|i| (1, i)).collect();
        compute(pages, &mut table, &text(&long));
        check(pages);
        let held = |table: &Table| table.pages[1].iter().filter(|&&page| page != NONE).count();
        assert!(held(&table) <= 3, "{}", held(&table));
        pages.truncate(&mut table, 0);
        // All of it, or as far as pages of windows are left: five of them, those of the last pages.
        assert_eq!(compute(pages, &mut table, &text(&long)), 8);
        let resumable = |n: usize| pages.resumable(&table, 8 * PAGE_TOKENS, n * PAGE_TOKENS) / PAGE_TOKENS;
        assert_eq!((resumable(3), resumable(8)), (0, 8));
        pages.truncate(&mut table, 0);
        assert_eq!(compute(pages, &mut table, &text(&long[..5])), 5);
        pages.truncate(&mut table, 0);
        // Here one is missing.
        assert_eq!(compute(pages, &mut table, &text(&long[..2])), 0);
    });
}

#[test]
fn any_order_of_events_leaves_the_books_in_order() {
    let mut state = 1u32;
    let mut random = move |n: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % n
    };
    let plans = [plan(40, None, 0), plan(40, Some((100, 16)), 0), plan(40, None, 9), plan(40, Some((100, 16)), 9)];
    for plan in &plans {
        with_pages(plan, |pages| {
            let mut tables: Vec<Table> = (0..4).map(|slot| Table::new(plan, 8 * PAGE_TOKENS, slot)).collect();
            for _ in 0..3000 {
                let table = &mut tables[random(4)];
                pages.truncate(table, 0);
                let parts: Vec<(u32, u32)> = (0..1 + random(8)).map(|i| (random(2) as u32, i as u32)).collect();
                let stops = match random(3) {
                    0 => Stops::default(),
                    1 => Stops::kept_after([1 + random(8), 1 + random(8)]),
                    _ => every(),
                };
                compute_with(pages, table, &text(&parts), &stops);
                if random(10) == 0 {
                    pages.withdraw_all(table);
                }
                check(pages);
            }
            tables.iter_mut().for_each(|table| pages.truncate(table, 0));
            assert_eq!(pages.available(), 40);
            let kept = pages.checkpoints().map(|list| pages.attachments[list].pool.available());
            assert!(kept.is_none_or(|kept| kept == 9), "{kept:?}");
        });
    }
}

#[test]
fn a_prefix_is_continued_at_its_last_checkpoint() {
    let plan = plan(16, None, 3);
    with_pages(&plan, |pages| {
        let mut table = Table::new(&plan, 16 * PAGE_TOKENS, 0);
        let long: Vec<(u32, u32)> = (0..5).map(|i| (1, i)).collect();
        compute(pages, &mut table, &text(&long));
        pages.truncate(&mut table, 0);
        // Three checkpoints are left, those of the last pages; one at the end of what is common is found.
        assert_eq!(compute(pages, &mut table, &text(&[(1, 0), (1, 1), (1, 2), (1, 3), (2, 4)])), 4);
        assert_eq!(table.resumed, NONE, "given back once a pass has gone on from it");
        pages.truncate(&mut table, 0);
        assert_eq!(compute(pages, &mut table, &text(&[(1, 0), (1, 1), (2, 2)])), 0);
        pages.truncate(&mut table, 0);
        // What a sequence goes on from is its own until it has: others' checkpoints do not take its place.
        let adopted = pages.adopt(&mut table, ROOT, &text(&[(1, 0), (1, 1), (2, 2)]));
        assert_eq!((table.len(), adopted.shared, adopted.serial), (3, 3, pages.node(table.pages[FULL][2]).serial));
        let resumed = table.slice(0, 1, 3 * PAGE_TOKENS).state_before;
        assert!(resumed >= 4 && resumed == table.resumed);
        let mut other = Table::new(&plan, 16 * PAGE_TOKENS, 1);
        compute(pages, &mut other, &text(&[(3, 0), (3, 1), (3, 2), (3, 3)]));
        assert_eq!(table.slice(0, 1, 3 * PAGE_TOKENS).state_before, resumed);
        assert!(pages.attachments[0].pool.owners[resumed as usize] > 0);
        pages.truncate(&mut other, 0);
        pages.truncate(&mut table, 0);
    });
}

#[test]
fn a_sequence_that_publishes_nothing_goes_back_to_its_own_checkpoints() {
    let plan = plan(8, None, 8);
    let mut pages = Pages::new(&plan, &mut []);
    let mut table = Table::new(&plan, 8 * PAGE_TOKENS, 0);
    let mut position = 0;
    for n in [100, 100, 1] {
        assert!(pages.extend(&mut table, position, n, &Stops::default()));
        position += n;
        pages.advance(&mut table, position);
    }
    let resumable = |pages: &Pages<'_>, table: &Table, n| pages.resumable(table, 201, n);
    assert_eq!([201, 200, 192, 191, 64, 63].map(|n| resumable(&pages, &table, n)), [201, 192, 192, 128, 64, 0]);
    pages.truncate(&mut table, 128);
    assert_eq!(table.slice(0, 1, 128).state_before, table.pages[1][1]);
    assert_eq!(table.pages[1][2], NONE);
    pages.truncate(&mut table, 0);
    assert_eq!(table.slice(0, 1, 0).state_before, NONE);
    assert_eq!(pages.attachments[0].pool.free.len(), 8);
}

#[test]
fn of_as_many_checkpoints_as_there_are_the_one_used_longest_ago_goes_for_one_more() {
    let plan = plan(16, None, 3);
    with_pages(&plan, |pages| {
        let mut table = Table::new(&plan, 16 * PAGE_TOKENS, 0);
        // Each text has a checkpoint after its second page.
        let one = |pages: &mut Pages<'_>, table: &mut Table, n: u32| {
            let reused = compute_with(pages, table, &text(&[(n, 0), (n, 1), (n, 2)]), &Stops::kept_after([2]));
            pages.truncate(table, 0);
            reused
        };
        assert_eq!([1, 2, 3].map(|n| one(pages, &mut table, n)), [0; 3]);
        assert_eq!((pages.checkpoint_counts(), one(pages, &mut table, 1)), ([3, 3, 3], 2));
        // The second text's is the oldest now.
        assert_eq!(one(pages, &mut table, 4), 0);
        assert_eq!([1, 3, 4].map(|n| one(pages, &mut table, n)), [2; 3]);
        let adopted = pages.adopt(&mut table, ROOT, &text(&[(2, 0), (2, 1), (2, 2)]));
        assert_eq!(
            (table.len(), adopted),
            (0, Adopted { serial: ROOT, shared: 3 }),
            "its pages are there all the same"
        );
    });
}

#[test]
fn a_sequence_that_generates_has_one_checkpoint_which_stays_when_it_ends() {
    let plan = plan(24, None, 3);
    with_pages(&plan, |pages| {
        let mut tables = [0, 1].map(|slot| Table::new(&plan, 16 * PAGE_TOKENS, slot));
        let answer = |n: u32| (0..6).map(|i| (n, i)).collect::<Vec<_>>();
        assert_eq!(compute_with(pages, &mut tables[0], &text(&answer(1)), &Stops::default()), 0);
        assert_eq!(pages.checkpoint_counts(), [3, 1, 6]);
        // Who goes on from it leaves it where it is, also when both generate.
        let longer: Vec<_> = answer(1).into_iter().chain([(2, 6), (2, 7)]).collect();
        assert_eq!(compute_with(pages, &mut tables[1], &text(&longer), &Stops::default()), 6);
        assert_eq!(pages.checkpoint_counts()[1], 2);
        pages.truncate(&mut tables[0], 0);
        pages.truncate(&mut tables[1], 0);
        assert_eq!(compute_with(pages, &mut tables[0], &text(&answer(1)), &Stops::default()), 6);
        assert_eq!(compute_with(pages, &mut tables[1], &text(&longer), &Stops::default()), 8);
        assert_eq!(pages.checkpoint_counts()[1], 2);
        tables.iter_mut().for_each(|table| pages.truncate(table, 0));
    });
}

#[test]
fn two_that_generate_the_same_do_not_take_each_other_s_checkpoint() {
    let plan = plan(24, None, 4);
    with_pages(&plan, |pages| {
        let mut tables = [0, 1].map(|slot| Table::new(&plan, 16 * PAGE_TOKENS, slot));
        let (tokens, mut serials) = (text(&[(1, 0), (1, 1), (1, 2)]), [ROOT; 2]);
        for (index, page) in tokens.chunks_exact(PAGE_TOKENS).enumerate() {
            let position = index * PAGE_TOKENS;
            for table in &mut tables {
                assert!(pages.extend(table, position, PAGE_TOKENS, &Stops::default()));
            }
            for (table, serial) in tables.iter_mut().zip(&mut serials) {
                pages.advance(table, position + PAGE_TOKENS);
                *serial = pages.publish(table, index, *serial, page);
            }
            assert_eq!((serials[0], pages.checkpoint_counts()[1]), (serials[1], 1), "after page {index}");
        }
        assert!(tables[0].rolling.is_some() && tables[1].rolling.is_none());
        tables.iter_mut().for_each(|table| pages.truncate(table, 0));
        assert_eq!(compute_with(pages, &mut tables[0], &tokens, &Stops::default()), 3);
        pages.truncate(&mut tables[0], 0);
    });
}

#[test]
fn without_a_checkpoint_a_sequence_begins_at_its_beginning() {
    let mut plan = plan(8, None, 1);
    plan.n_checkpoints = 0;
    with_pages(&plan, |pages| {
        let mut table = Table::new(&plan, 8 * PAGE_TOKENS, 2);
        for _ in 0..3 {
            assert_eq!(compute(pages, &mut table, &text(&[(1, 0), (1, 1)])), 0);
            pages.truncate(&mut table, 0);
        }
        assert_eq!((pages.checkpoint_counts(), pages.counts()), ([0, 0, 0], [0, 2, 8]));
    });
}

#[test]
fn a_sequence_alone_gives_up_its_own_oldest_checkpoint_and_not_the_one_it_stands_on() {
    let plan = plan(16, None, 2);
    let mut pages = Pages::new(&plan, &mut []);
    let mut table = Table::new(&plan, 16 * PAGE_TOKENS, 0);
    let feed = |pages: &mut Pages<'_>, table: &mut Table, from: usize, to: usize| {
        assert!(pages.extend(table, from * PAGE_TOKENS, (to - from) * PAGE_TOKENS, &every()));
        let before = table.slice(0, 1, from * PAGE_TOKENS).state_before;
        pages.advance(table, to * PAGE_TOKENS);
        before
    };
    let held = |table: &Table| (1..=16).filter(|n| table.pages[1][n - 1] != NONE).collect::<Vec<_>>();
    feed(&mut pages, &mut table, 0, 5);
    assert_eq!(held(&table), [4, 5]);
    assert_eq!(pages.resumable(&table, 5 * PAGE_TOKENS, 5 * PAGE_TOKENS - 1), 4 * PAGE_TOKENS);
    pages.truncate(&mut table, 4 * PAGE_TOKENS);
    let stands_on = table.pages[1][3];
    assert_eq!(feed(&mut pages, &mut table, 4, 7), stands_on);
    assert_eq!(held(&table), [4, 7], "the one it goes on from is not given up for another");
    feed(&mut pages, &mut table, 7, 8);
    assert_eq!(held(&table), [7, 8]);
    pages.truncate(&mut table, 0);
    assert_eq!(pages.attachments[0].pool.free.len(), 2);
}
