//! Where contents are: nowhere, in memory, in the store, on disk; and all the ways between.

use actors::contract::page::{Advice, PagedOut};
use actors::{PageSize, Protection};

use super::super::content;
use super::super::control::What;
use super::super::driver::Order;
use super::super::sight::{Kind, Sight};
use super::{Act, Amount, Counter, GONE, Guide};

const ONE_FAULT: (Counter, Amount) = (Counter::Faults, Amount::Exactly(1));
const NO_FAULT: (Counter, Amount) = (Counter::Faults, Amount::Exactly(0));
const ONE_FRESH: (Counter, Amount) = (Counter::ZeroFilled, Amount::Exactly(1));

/// What a pageout of pages that nothing keeps does: all of `freed` leave, `clean` of them without a copy being made.
const fn out(freed: u64, clean: u64) -> PagedOut {
    PagedOut {
        freed_pages: freed,
        clean_pages: clean,
        held_pages: 0,
        wired_pages: 0,
        rescued_pages: 0,
    }
}

fn fresh() -> Sight {
    Sight::of(Kind::Dirty).mapped(PageSize::Size4KiB).writable(true).accessed(true).modified(true)
}

/// From nowhere into memory, and out of the guest's reach and back.
pub(super) fn arriving(guide: &mut Guide) {
    let page = guide.page();
    let at = page.start();
    let acts = vec![
        Act::See(at, Sight::of(Kind::Absent).unmapped().held(false).wired(false)),
        guide.read(page, 0),
        Act::See(at, fresh()),
    ];
    guide.add("absent -> resident, by a read", acts, &[ONE_FAULT, ONE_FRESH]);

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        Act::See(at, Sight::of(Kind::Absent).unmapped()),
        guide.write(page, content(1)),
        Act::See(at, fresh()),
        guide.read(page, content(1)),
    ];
    guide.add("absent -> resident, by a write", acts, &[ONE_FAULT, ONE_FRESH]);

    // Zeroes run into the page behind them: that one is code.
    let pages = guide.pages(2);
    let zeroes = actors::GpaRange::page_of(pages.start());
    let code = actors::GpaRange::page_of(actors::Gpa(pages.end().0 - actors::PAGE_SIZE));
    let acts = vec![
        guide.write(code, content(2)),
        Act::See(zeroes.start(), Sight::of(Kind::Absent).unmapped()),
        guide.execute(zeroes, 2),
        Act::See(zeroes.start(), fresh()),
    ];
    let two = [(Counter::Faults, Amount::Exactly(2)), (Counter::ZeroFilled, Amount::Exactly(2))];
    guide.add("absent -> resident, by an execution", acts, &two);

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        Act::See(at, Sight::of(Kind::Absent).unmapped()),
        Act::Do(Order::Hold(page, Protection::READ | Protection::WRITE)),
        Act::See(at, Sight::of(Kind::Dirty).unmapped().held(true)),
        Act::Refused(Order::Unmap(page), "held"),
        Act::Do(Order::Release(page)),
        Act::See(at, Sight::of(Kind::Dirty).unmapped().held(false)),
    ];
    guide.add("absent -> resident and held -> released", acts, &[NO_FAULT]);

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        guide.write(page, content(3)),
        Act::Do(Order::Forget(page)),
        Act::See(at, Sight::of(Kind::Dirty).unmapped()),
        guide.read(page, content(3)),
        Act::See(at, Sight::of(Kind::Dirty).mapped(PageSize::Size4KiB).accessed(true)),
    ];
    let counts = [(Counter::Faults, Amount::Exactly(2)), ONE_FRESH];
    guide.add("mapped -> not mapped, by being forgotten -> mapped", acts, &counts);

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        guide.write(page, content(4)),
        Act::Do(Order::Unmap(page)),
        Act::See(at, GONE),
        Act::Do(Order::Map(page)),
        Act::See(at, Sight::of(Kind::Absent).unmapped()),
        guide.read(page, 0),
    ];
    let two =
        [(Counter::ZeroFilled, Amount::Exactly(2)), (Counter::Shootdowns, Amount::Exactly(1))];
    guide.add("resident -> gone, by unmapping -> absent", acts, &two);
}

/// Into the store and back.
pub(super) fn leaving(guide: &mut Guide) {
    packed(guide);
    on_disk(guide);
    cleaned(guide);
    kept(guide);
    gone(guide);
}

/// In memory, but not as pages: compressed, or known to be zeroes.
fn packed(guide: &mut Guide) {
    let no_swap = guide.no_swap();
    let stored = Sight::of(Kind::Compressed).unmapped();
    // A copy in memory is worth less than the room it takes: it goes when the page comes back.
    let back = Sight::of(Kind::Dirty).mapped(PageSize::Size4KiB).accessed(true);
    let one_out = (Counter::PagesOut, Amount::Exactly(1));
    let one_in = (Counter::PagesIn, Amount::Exactly(1));

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        guide.write(page, content(5)),
        Act::Out(page, out(1, 0)),
        Act::See(at, stored),
        guide.read(page, content(5)),
        Act::See(at, back),
    ];
    let counts = [one_out, one_in, (Counter::CompressedIn, Amount::Exactly(1))];
    guide.add_unless(no_swap, "dirty -> compressed -> dirty, by a read", acts, &counts);

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        guide.write(page, content(6)),
        Act::Out(page, out(1, 0)),
        guide.write(page, content(7)),
        Act::See(at, fresh()),
        guide.read(page, content(7)),
    ];
    guide.add_unless(no_swap, "compressed -> dirty, by a write", acts, &[one_out, one_in]);

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        guide.write(page, content(8)),
        Act::Out(page, out(1, 0)),
        guide.execute(page, 8),
        Act::See(at, back),
    ];
    guide.add_unless(no_swap, "compressed -> dirty, by an execution", acts, &[one_out, one_in]);

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        guide.read(page, 0),
        Act::Out(page, out(1, 1)),
        Act::See(at, Sight::of(Kind::Zero).unmapped()),
        guide.read(page, 0),
        Act::See(at, Sight::of(Kind::Resident).mapped(PageSize::Size4KiB)),
    ];
    guide.add_unless(no_swap, "dirty -> zero -> resident", acts, &[one_out]);

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        guide.write(page, content(12)),
        Act::Out(page, out(1, 0)),
        Act::Do(Order::Hold(page, Protection::READ)),
        Act::See(at, Sight::of(Kind::Dirty).unmapped().held(true)),
        Act::Do(Order::Release(page)),
        guide.read(page, content(12)),
    ];
    guide.add_unless(no_swap, "compressed -> dirty and held", acts, &[one_out, one_in]);

    // Which page is on its way when is the host's affair; that one can be caught is ours.
    let pages = guide.pages(64);
    let first = guide.deed(What::Write, pages, content(13));
    let acts = vec![Act::Deed(first), Act::Rescue(pages, first), guide.read(pages, content(13))];
    let counts = [(Counter::Rescued, Amount::AtLeast(1))];
    guide.add_unless(no_swap, "dirty -> leaving -> rescued, by a hold", acts, &counts);
}

/// What does not compress goes to the disk without being asked.
fn on_disk(guide: &mut Guide) {
    let no_swap = guide.no_swap();
    let disk = Sight::of(Kind::Disk).unmapped();
    let clean = Sight::of(Kind::Clean).mapped(PageSize::Size4KiB);

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        Act::Do(Order::Scatter(page, content(14))),
        guide.read(page, content(14)),
        Act::Out(page, out(1, 0)),
        Act::Until(at, disk),
        guide.read(page, content(14)),
        Act::See(at, clean.modified(false)),
        Act::Out(page, out(1, 1)),
        Act::See(at, disk),
        guide.execute(page, 14),
    ];
    let counts = [
        (Counter::DiskIn, Amount::Exactly(2)),
        (Counter::Written, Amount::Exactly(1)),
        (Counter::PagesOut, Amount::Exactly(2)),
    ];
    let name = "dirty -> disk -> arriving -> clean -> disk, with nothing to write";
    guide.add_unless(no_swap, name, acts, &counts);

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        Act::Do(Order::Scatter(page, content(15))),
        Act::Out(page, out(1, 0)),
        Act::Until(at, disk),
        guide.write(page, content(16)),
        Act::See(at, Sight::of(Kind::Dirty).mapped(PageSize::Size4KiB).modified(true)),
        Act::Out(page, out(1, 0)),
        Act::Until(at, disk),
        guide.read(page, content(16)),
    ];
    let counts = [(Counter::DiskIn, Amount::Exactly(2)), (Counter::Written, Amount::Exactly(2))];
    guide.add_unless(no_swap, "disk -> arriving -> dirty, by a write", acts, &counts);
}

/// A page that came back from the disk is clean until it is stored to.
fn cleaned(guide: &mut Guide) {
    let no_swap = guide.no_swap();
    let disk = Sight::of(Kind::Disk).unmapped();
    let page = guide.page();
    let at = page.start();
    let acts = vec![
        Act::Do(Order::Scatter(page, content(10))),
        Act::Out(page, out(1, 0)),
        Act::Until(at, disk),
        guide.read(page, content(10)),
        Act::See(at, Sight::of(Kind::Clean).mapped(PageSize::Size4KiB).modified(false)),
        guide.write(page, content(11)),
        Act::See(at, Sight::of(Kind::Dirty).mapped(PageSize::Size4KiB).modified(true)),
        Act::Out(page, out(1, 0)),
        Act::Until(at, disk),
        guide.read(page, content(11)),
    ];
    let counts = [
        (Counter::DiskIn, Amount::Exactly(2)),
        (Counter::Written, Amount::Exactly(2)),
        (Counter::Faults, Amount::Exactly(2 + u64::from(guide.setting.emulated))),
    ];
    guide.add_unless(no_swap, "clean -> dirty, by a write", acts, &counts);
}

/// What a pageout leaves alone, and what it is told about pages.
fn kept(guide: &mut Guide) {
    let no_swap = guide.no_swap();
    let page = guide.page();
    let at = page.start();
    let acts = vec![
        guide.write(page, content(17)),
        Act::Do(Order::Wire(page)),
        Act::See(at, Sight::of(Kind::Dirty).mapped(PageSize::Size4KiB).wired(true)),
        Act::Out(page, PagedOut { wired_pages: 1, ..out(0, 0) }),
        Act::Refused(Order::Forget(page), "wired"),
        Act::Do(Order::Unwire(page)),
        Act::See(at, Sight::of(Kind::Dirty).wired(false)),
        guide.read(page, content(17)),
    ];
    guide.add_unless(no_swap, "resident -> wired, and passed over -> not wired", acts, &[]);

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        Act::Do(Order::Wire(page)),
        Act::See(at, Sight::of(Kind::Dirty).mapped(PageSize::Size4KiB).wired(true)),
        guide.write(page, content(18)),
        Act::Do(Order::Unwire(page)),
    ];
    guide.add("absent -> wired", acts, &[NO_FAULT]);

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        guide.write(page, content(19)),
        Act::Do(Order::Hold(page, Protection::READ)),
        Act::Out(page, PagedOut { held_pages: 1, ..out(0, 0) }),
        Act::See(at, Sight::of(Kind::Dirty).held(true)),
        Act::Do(Order::Release(page)),
        Act::Out(page, out(1, 0)),
        guide.read(page, content(19)),
    ];
    let counts = [(Counter::PagesOut, Amount::Exactly(1))];
    guide.add_unless(no_swap, "resident -> held, and passed over -> released", acts, &counts);

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        guide.write(page, content(20)),
        Act::Do(Order::Advise(page, Advice::DontNeed)),
        Act::See(at, Sight::of(Kind::Dirty).accessed(false)),
        guide.read(page, content(20)),
        Act::See(at, Sight::of(Kind::Dirty).mapped(PageSize::Size4KiB).accessed(true)),
    ];
    guide.add("accessed -> aged, by advice", acts, &[]);

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        guide.write(page, content(21)),
        Act::Do(Order::Advise(page, Advice::Free)),
        Act::See(at, Sight::of(Kind::Absent).unmapped().writable(true)),
        guide.read(page, 0),
    ];
    guide.add("dirty -> absent, by advice", acts, &[]);
}

/// Out of the map while the contents are in the store.
fn gone(guide: &mut Guide) {
    let no_swap = guide.no_swap();
    let page = guide.page();
    let at = page.start();
    let acts = vec![
        guide.write(page, content(22)),
        Act::Out(page, out(1, 0)),
        Act::Do(Order::Unmap(page)),
        Act::See(at, GONE),
        Act::Do(Order::Map(page)),
        Act::See(at, Sight::of(Kind::Absent).unmapped()),
        guide.read(page, 0),
    ];
    let none_in = (Counter::PagesIn, Amount::Exactly(0));
    guide.add_unless(no_swap, "compressed -> gone, by unmapping -> absent", acts, &[none_in]);

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        Act::Do(Order::Scatter(page, content(23))),
        Act::Out(page, out(1, 0)),
        Act::Until(at, Sight::of(Kind::Disk)),
        Act::Do(Order::Unmap(page)),
        Act::See(at, GONE),
        Act::Do(Order::Map(page)),
        Act::See(at, Sight::of(Kind::Absent).unmapped()),
        guide.read(page, 0),
    ];
    guide.add_unless(no_swap, "disk -> gone, by unmapping -> absent", acts, &[none_in]);
}
