use super::*;

/// Tokens of page `i` of text `text`.
fn page(text: u32, i: u32) -> Vec<u32> {
    (0..PAGE_TOKENS as u32).map(|t| text * 10_000 + i * 100 + t).collect()
}

fn text(pages: &[(u32, u32)]) -> Vec<u32> {
    pages.iter().flat_map(|&(text, i)| page(text, i)).collect()
}

/// A sequence that computes and publishes `tokens`, whole pages, after what it can take over; returns how many pages that was.
fn compute(pages: &mut Pages<'_>, table: &mut Table, tokens: &[u32]) -> usize {
    let mut serial = pages.adopt(table, ROOT, tokens);
    let reused = table.len();
    for (index, tokens) in tokens.chunks_exact(PAGE_TOKENS).enumerate().skip(reused) {
        assert!(pages.extend(table, index * PAGE_TOKENS, PAGE_TOKENS));
        serial = pages.publish(table, index, serial, tokens);
    }
    reused
}

/// Every page is owned, idle or free, and what is published is found.
fn check(pages: &Pages<'_>) {
    for pool in &pages.pools {
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
        assert!(node.window == NONE || pages.window_of[node.window as usize] == page);
    }
}

fn with_pages(n_pages: [usize; 2], window: usize, work: impl FnOnce(&mut Pages<'_>)) {
    let mut tokens = vec![0; n_pages[0] * PAGE_TOKENS];
    let mut pages = Pages::new(n_pages, window, &mut tokens);
    work(&mut pages);
    check(&pages);
}

#[test]
fn a_prefix_is_found_while_its_pages_are_there() {
    with_pages([8, 0], usize::MAX, |pages| {
        let mut first = Table::new(8 * PAGE_TOKENS, false);
        assert_eq!(compute(pages, &mut first, &text(&[(1, 0), (1, 1), (1, 2)])), 0);
        let mut second = Table::new(8 * PAGE_TOKENS, false);
        // While the first still has them; what is behind another beginning is another.
        assert_eq!(compute(pages, &mut second, &text(&[(1, 0), (1, 1), (2, 2)])), 2);
        assert_eq!(first.pages()[0][..2], second.pages()[0][..2]);
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
    with_pages([6, 0], usize::MAX, |pages| {
        let mut table = Table::new(6 * PAGE_TOKENS, false);
        for n in [1, 2] {
            compute(pages, &mut table, &text(&[(n, 0), (n, 1), (n, 2)]));
            pages.truncate(&mut table, 0);
        }
        // Two more pages take the place of the end of the older text.
        compute(pages, &mut table, &text(&[(3, 0), (3, 1)]));
        check(pages);
        pages.truncate(&mut table, 0);
        assert_eq!(
            pages.adopt(&mut table, ROOT, &text(&[(1, 0), (1, 1), (1, 2)])),
            pages.nodes[table.pages[0][0] as usize].serial
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
    with_pages([8, 0], usize::MAX, |pages| {
        let tokens = text(&[(1, 0), (1, 1)]);
        let mut tables = [(); 2].map(|()| Table::new(8 * PAGE_TOKENS, false));
        for table in &mut tables {
            assert!(pages.extend(table, 0, 2 * PAGE_TOKENS));
        }
        assert_eq!(pages.counts(), [4, 0, 8]);
        for table in &mut tables {
            let serial = pages.publish(table, 0, ROOT, &tokens[..PAGE_TOKENS]);
            pages.publish(table, 1, serial, &tokens[PAGE_TOKENS..]);
        }
        assert_eq!(tables[0].pages()[0], tables[1].pages()[0]);
        assert_eq!(pages.counts(), [2, 0, 8]);
        pages.truncate(&mut tables[0], 0);
        assert_eq!(pages.counts(), [2, 0, 8]);
        pages.truncate(&mut tables[1], 0);
        assert_eq!(pages.counts(), [0, 2, 8]);
    });
}

#[test]
fn one_page_more_than_there_are_is_not_given() {
    with_pages([3, 0], usize::MAX, |pages| {
        let mut tables = [(); 2].map(|()| Table::new(4 * PAGE_TOKENS, false));
        assert!(pages.extend(&mut tables[0], 0, 2 * PAGE_TOKENS));
        assert!(pages.extend(&mut tables[1], 0, 1));
        assert!(pages.extend(&mut tables[1], 1, PAGE_TOKENS - 1));
        assert!(!pages.extend(&mut tables[1], PAGE_TOKENS, 1));
        pages.truncate(&mut tables[0], PAGE_TOKENS);
        assert!(pages.extend(&mut tables[1], PAGE_TOKENS, 1));
    });
}

#[test]
fn what_is_withdrawn_is_not_found_and_goes_when_its_owners_do() {
    with_pages([4, 4], 70, |pages| {
        let mut tables = [(); 2].map(|()| Table::new(4 * PAGE_TOKENS, true));
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
    with_pages([16, 5], 100, |pages| {
        let mut table = Table::new(16 * PAGE_TOKENS, true);
        let long: Vec<(u32, u32)> = (0..8).map(|i| (1, i)).collect();
        compute(pages, &mut table, &text(&long));
        check(pages);
        let held = |table: &Table| table.pages()[1].iter().filter(|&&page| page != NONE).count();
        assert!(held(&table) <= 3, "{}", held(&table));
        pages.truncate(&mut table, 0);
        // All of it, or as far as pages of windows are left: five of them, those of the last pages.
        assert_eq!(compute(pages, &mut table, &text(&long)), 8);
        assert!(!pages.holds(&table, 3 * PAGE_TOKENS) && pages.holds(&table, 8 * PAGE_TOKENS));
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
    for window in [usize::MAX, 100] {
        let has_windows = window != usize::MAX;
        with_pages([40, if has_windows { 16 } else { 0 }], window, |pages| {
            let mut tables: Vec<Table> = (0..4).map(|_| Table::new(8 * PAGE_TOKENS, has_windows)).collect();
            for _ in 0..3000 {
                let table = &mut tables[random(4)];
                pages.truncate(table, 0);
                let parts: Vec<(u32, u32)> = (0..1 + random(8)).map(|i| (random(2) as u32, i as u32)).collect();
                compute(pages, table, &text(&parts));
                if random(10) == 0 {
                    pages.withdraw_all(table);
                }
                check(pages);
            }
            tables.iter_mut().for_each(|table| pages.truncate(table, 0));
            assert_eq!(pages.available(), 40);
        });
    }
}
