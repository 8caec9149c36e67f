//! Superpages: made of 512 pages that are alike, and unmade by whatever treats one of them differently.

use actors::contract::page::{PagedOut, Resized, Touch};
use actors::{Gpa, GpaRange, PAGE_SIZE, PageSize, Protection};

use super::super::content;
use super::super::control::{BLOCK, What};
use super::super::driver::Order;
use super::super::sight::{Kind, Sight};
use super::{Act, Amount, Counter, Found, GONE, Guide};

/// All of it.
fn block() -> GpaRange {
    GpaRange::new(BLOCK, PageSize::Size2MiB.bytes()).expect("a block")
}

/// One page of it.
fn page(number: u64) -> GpaRange {
    GpaRange::page_of(Gpa(BLOCK.0 + number * PAGE_SIZE))
}

const SUPER: Sight = Sight {
    kind: Some(Kind::Dirty),
    mapped: Some(Some(PageSize::Size2MiB)),
    writable: Some(true),
    accessed: Some(true),
    modified: Some(true),
    wired: None,
    held: None,
};

const ALL_DONE: Resized = Resized { changed_blocks: 1, refused_blocks: 0 };

/// All of them.
pub(super) fn all(guide: &mut Guide) {
    let why_not = guide.no_superpages();
    let (first, last) = (block().start(), page(511).start());
    let small = Sight::of(Kind::Dirty).mapped(PageSize::Size4KiB);
    let one_up = (Counter::Promotions, Amount::Exactly(1));
    let one_down = (Counter::Demotions, Amount::Exactly(1));

    let acts = vec![
        Act::See(first, Sight::of(Kind::Absent).unmapped()),
        guide.write(block(), content(60)),
        Act::See(first, SUPER),
        Act::See(last, SUPER),
        guide.read(block(), content(60)),
        guide.execute(page(300), 60),
    ];
    guide.add_unless(why_not, "512 pages, all stored to -> superpage", acts, &[one_up]);

    let acts = vec![
        Act::Do(Order::Protect(page(5), Protection::READ | Protection::EXECUTE)),
        Act::See(page(5).start(), small.writable(false)),
        Act::See(page(6).start(), small.writable(true)),
        guide.read(block(), content(60)),
        Act::Do(Order::Protect(page(5), Protection::all())),
    ];
    guide.add_unless(why_not, "superpage -> pages, by protecting one", acts, &[one_down]);

    let acts = again(guide, 61);
    guide.add_unless(why_not, "pages -> superpage, by request", acts, &[one_up]);

    let acts = vec![
        Act::Resize(Order::Demote(block()), ALL_DONE),
        Act::See(first, small),
        Act::See(last, small),
        guide.read(block(), content(61)),
    ];
    guide.add_unless(why_not, "superpage -> pages, by request", acts, &[one_down]);

    // From here on a block may become a superpage again by itself, as soon as its pages are alike.
    let some_down = (Counter::Demotions, Amount::AtLeast(1));
    let mut acts = again(guide, 62);
    let both = Touch::ACCESSED | Touch::MODIFIED;
    acts.extend([
        Act::Harvest(block(), both, Found { accessed: Some(true), modified: Some(true) }),
        Act::See(first, Sight::of(Kind::Dirty).accessed(false).modified(false)),
        guide.read(block(), content(62)),
        Act::Harvest(block(), both, Found { accessed: Some(true), modified: Some(false) }),
    ]);
    guide.add_unless(why_not, "superpage -> aged and not modified, by a harvest", acts, &[]);

    let no_swap = why_not.or(guide.no_swap());
    let mut acts = again(guide, 63);
    let gone = PagedOut { freed_pages: 1, ..PagedOut::default() };
    acts.extend([
        Act::Out(page(9), gone),
        Act::See(page(9).start(), Sight::of(Kind::Compressed).unmapped()),
        Act::See(page(10).start(), small),
        guide.read(block(), content(63)),
    ]);
    let counts = [some_down, (Counter::PagesIn, Amount::Exactly(1))];
    guide.add_unless(no_swap, "superpage -> pages, by paging one out", acts, &counts);

    let mut acts = again(guide, 64);
    acts.extend([
        Act::Do(Order::Forget(page(11))),
        Act::See(page(11).start(), Sight::of(Kind::Dirty).unmapped()),
        Act::See(page(12).start(), small),
        guide.read(block(), content(64)),
    ]);
    guide.add_unless(why_not, "superpage -> pages, by forgetting one", acts, &[some_down]);

    let mut acts = again(guide, 65);
    acts.extend([
        Act::Do(Order::Unmap(page(13))),
        Act::See(page(13).start(), GONE),
        Act::See(page(14).start(), small),
        Act::Do(Order::Map(page(13))),
        Act::See(page(13).start(), Sight::of(Kind::Absent).unmapped()),
        guide.read(page(13), 0),
        guide.read(page(14), content(65)),
    ]);
    guide.add_unless(why_not, "superpage -> pages, by unmapping one", acts, &[some_down]);

    let mut acts = again(guide, 66);
    acts.extend([
        Act::Do(Order::Unmap(block())),
        Act::See(first, GONE),
        Act::Do(Order::Map(block())),
        Act::See(last, Sight::of(Kind::Absent).unmapped()),
        guide.read(page(511), 0),
    ]);
    guide.add_unless(why_not, "superpage -> gone, by unmapping all of it", acts, &[]);

    // Where there are none, nobody may make any.
    let acts = vec![
        guide.write(block(), content(67)),
        Act::Resize(Order::Promote(block()), Resized { changed_blocks: 0, refused_blocks: 1 }),
        Act::See(first, small),
        guide.read(block(), content(67)),
    ];
    let counts = [(Counter::Promotions, Amount::Exactly(0))];
    let why_not = guide.setting.superpages.then_some("there are superpages: --superpages on");
    guide.add_unless(why_not, "512 pages, all stored to -> not promoted", acts, &counts);
}

/// Every page is stored to, and the block is a superpage again: by itself or because it is asked for.
fn again(guide: &mut Guide, tag: u32) -> Vec<Act> {
    let write = guide.deed(What::Write, block(), content(tag));
    vec![
        Act::Deed(write),
        Act::Do(Order::Promote(block())),
        Act::See(block().start(), SUPER),
        Act::See(page(511).start(), SUPER),
    ]
}
