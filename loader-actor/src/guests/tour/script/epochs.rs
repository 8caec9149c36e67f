//! Dirty epochs: taken, put back, taken again, acknowledged. What is in one are exactly the pages that were stored to:
//! besides the guest's stores those are fresh pages, and holds for writing.

use actors::Protection;
use actors::contract::page::{Settled, Touch};

use super::super::content;
use super::super::driver::Order;
use super::{Act, Found, Guide};

/// All of them.
pub(super) fn all(guide: &mut Guide) {
    let pages = guide.pages(8);
    let one: Vec<_> = pages.iter_pages().collect();
    let page = |number: usize| actors::GpaRange::page_of(one[number]);
    let none = Vec::new();
    let acts = vec![
        guide.write(pages, content(50)),
        Act::Begin,
        // Whatever was stored to before anybody asked is of no interest here.
        Act::Harvest(pages, Touch::MODIFIED, Found::default()),
        Act::Take(pages, one.clone()),
        Act::Settle(Settled::Acknowledged),
        guide.write(page(1), content(51)),
        guide.write(page(3), content(51)),
        Act::Take(pages, vec![one[1], one[3]]),
        Act::Settle(Settled::PutBack),
        guide.write(page(5), content(51)),
        Act::Take(pages, vec![one[1], one[3], one[5]]),
        Act::Settle(Settled::Acknowledged),
        guide.read(page(1), content(51)),
        Act::Take(pages, none.clone()),
        Act::Settle(Settled::Acknowledged),
        // Somebody else's harvest takes nothing from an epoch.
        guide.write(page(2), content(52)),
        Act::Harvest(page(2), Touch::MODIFIED, Found::modified(true)),
        Act::Take(pages, vec![one[2]]),
        Act::Settle(Settled::Acknowledged),
        // The monitor's stores count.
        Act::Do(Order::Hold(page(4), Protection::READ | Protection::WRITE)),
        Act::Do(Order::Release(page(4))),
        Act::Take(pages, vec![one[4]]),
        Act::Settle(Settled::Acknowledged),
        Act::End,
    ];
    guide.add("an epoch taken -> put back -> taken again -> acknowledged", acts, &[]);

    let no_swap = guide.no_swap();
    let pages = guide.pages(4);
    let one: Vec<_> = pages.iter_pages().collect();
    let page = |number: usize| actors::GpaRange::page_of(one[number]);
    let acts = vec![
        guide.write(pages, content(53)),
        Act::Begin,
        Act::Take(pages, one.clone()),
        Act::Settle(Settled::Acknowledged),
        guide.write(page(0), content(54)),
        Act::Do(Order::PageOut(page(0))),
        Act::Take(pages, vec![one[0]]),
        Act::Settle(Settled::Acknowledged),
        guide.read(page(0), content(54)),
        Act::Take(pages, none),
        Act::Settle(Settled::Acknowledged),
        Act::End,
    ];
    guide.add_unless(no_swap, "stored to, then paged out: in the epoch all the same", acts, &[]);
}
