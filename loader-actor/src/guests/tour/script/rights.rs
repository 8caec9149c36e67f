//! What the guest may do, and that it may again. A store that is refused would end the run, so none is tried.

use actors::contract::page::Settled;
use actors::{PageSize, Protection};

use super::super::content;
use super::super::driver::Order;
use super::super::sight::{Kind, Sight};
use super::{Act, Amount, Counter, Guide};

/// All of them.
pub(super) fn all(guide: &mut Guide) {
    let one_shootdown = (Counter::Shootdowns, Amount::Exactly(1));
    let resident = Sight::of(Kind::Dirty).mapped(PageSize::Size4KiB);

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        guide.write(page, content(40)),
        Act::Do(Order::Protect(page, Protection::READ | Protection::EXECUTE)),
        Act::See(at, resident.writable(false)),
        guide.read(page, content(40)),
        guide.execute(page, 40),
        Act::Do(Order::Protect(page, Protection::all())),
        Act::See(at, Sight::of(Kind::Dirty).writable(true)),
        guide.write(page, content(41)),
        guide.read(page, content(41)),
        Act::See(at, resident.writable(true).modified(true)),
    ];
    guide.add("writable -> read-only -> writable", acts, &[one_shootdown]);

    // What was stored before the right was lost is not forgotten with it.
    let page = guide.page();
    let at = page.start();
    let acts = vec![
        guide.write(page, 0),
        Act::Begin,
        Act::Take(page, vec![at]),
        Act::Settle(Settled::Acknowledged),
        guide.write(page, content(42)),
        Act::Do(Order::Protect(page, Protection::READ | Protection::EXECUTE)),
        Act::Take(page, vec![at]),
        Act::Settle(Settled::Acknowledged),
        Act::End,
        Act::Do(Order::Protect(page, Protection::all())),
        Act::See(at, Sight::of(Kind::Dirty).writable(true).modified(false)),
        guide.read(page, content(42)),
    ];
    guide.add("modified -> read-only, and in the epoch all the same", acts, &[]);

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        guide.write(page, content(43)),
        Act::Do(Order::Protect(page, Protection::empty())),
        Act::See(at, Sight::of(Kind::Dirty).unmapped()),
        Act::Do(Order::Protect(page, Protection::all())),
        guide.read(page, content(43)),
        Act::See(at, resident),
    ];
    guide.add("mapped -> out of reach, by protection -> mapped", acts, &[one_shootdown]);
}
